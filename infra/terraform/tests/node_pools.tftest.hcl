# The node pools, planned without an account.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name               = "recs"
  cluster_name       = "recs"
  kubernetes_version = "1.33"
  subnet_ids         = ["subnet-1", "subnet-2"]
  node_pools = {
    system = { instance_types = ["m7i.large"], min_size = 2, max_size = 3 }
    hot    = { instance_types = ["c7i.2xlarge"], min_size = 1, max_size = 10, roles = ["gateway", "hot", "warm"] }
    cold   = { instance_types = ["r6id.2xlarge"], min_size = 0, max_size = 4, roles = ["cold", "frozen"], spot = true, local_nvme = true, disk_gib = 200 }
    gpu    = { instance_types = ["g6.xlarge"], min_size = 0, max_size = 2, roles = ["dense"], gpu = true }
  }
}

run "pools" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  assert {
    condition     = aws_eks_node_group.pool["gpu"].ami_type == "AL2023_x86_64_NVIDIA" && aws_eks_node_group.pool["hot"].ami_type == "AL2023_x86_64_STANDARD"
    error_message = "GPU nodes come with NVIDIA's driver"
  }

  assert {
    condition     = one(aws_eks_node_group.pool["gpu"].taint).key == "nvidia.com/gpu" && one(aws_eks_node_group.pool["gpu"].taint).effect == "NO_SCHEDULE" && aws_eks_node_group.pool["gpu"].labels["nvidia.com/gpu.present"] == "true"
    error_message = "only what asks for GPUs lands on GPU nodes"
  }

  assert {
    condition     = aws_eks_node_group.pool["gpu"].scaling_config[0].min_size == 0 && aws_eks_node_group.pool["gpu"].scaling_config[0].desired_size == 0
    error_message = "GPUs start from zero"
  }

  assert {
    condition     = aws_eks_node_group.pool["cold"].capacity_type == "SPOT" && aws_eks_node_group.pool["hot"].capacity_type == "ON_DEMAND"
    error_message = "spot is an option of the pool"
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.pool : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "IMDSv2 only, and not from pods"
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.pool : template.block_device_mappings[0].ebs[0].encrypted == "true" && template.block_device_mappings[0].ebs[0].volume_type == "gp3"]) && aws_launch_template.pool["cold"].block_device_mappings[0].ebs[0].volume_size == 200
    error_message = "disks are encrypted gp3 of the pool's size"
  }

  assert {
    condition     = strcontains(base64decode(aws_launch_template.pool["cold"].user_data), "strategy: RAID0") && aws_launch_template.pool["hot"].user_data == null
    error_message = "local disks are joined where asked"
  }

  assert {
    condition     = output.placement["cold"].node_selector == { "erless.dev/pool" = "cold" } && output.placement["dense"].tolerations[0] == { key = "nvidia.com/gpu", operator = "Equal", value = "true", effect = "NoSchedule" }
    error_message = "roles know their pool's labels and taints"
  }

  assert {
    condition     = toset(keys(output.placement)) == toset(["gateway", "hot", "warm", "cold", "frozen", "dense"])
    error_message = "every role has a pool"
  }
}

run "hints_for_scaling_from_zero" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  assert {
    condition     = aws_autoscaling_group_tag.hint["gpu label nvidia.com/gpu.present"].tag[0].key == "k8s.io/cluster-autoscaler/node-template/label/nvidia.com/gpu.present"
    error_message = "labels"
  }

  assert {
    condition     = aws_autoscaling_group_tag.hint["gpu taint nvidia.com/gpu"].tag[0].key == "k8s.io/cluster-autoscaler/node-template/taint/nvidia.com/gpu" && aws_autoscaling_group_tag.hint["gpu taint nvidia.com/gpu"].tag[0].value == "true:NoSchedule"
    error_message = "taints, with Kubernetes' effect"
  }

  assert {
    condition     = aws_autoscaling_group_tag.hint["cold disk"].tag[0].value == "200Gi"
    error_message = "ephemeral storage"
  }
}

run "refuses_an_unknown_family" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = { all = { instance_types = ["z9.large"], min_size = 1, max_size = 2 } }
  }

  expect_failures = [var.node_pools]
}

run "graviton_takes_arm64" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = {
      all = { instance_types = ["c7g.large"], min_size = 1, max_size = 2, roles = ["gateway", "hot", "cold"] }
    }
  }

  assert {
    condition     = aws_eks_node_group.pool["all"].ami_type == "AL2023_ARM_64_STANDARD"
    error_message = "a Graviton pool needs Amazon Linux for arm64"
  }
}

run "refuses_two_architectures_in_one_pool" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = { all = { instance_types = ["c7g.large", "c7i.large"], min_size = 1, max_size = 2 } }
  }

  expect_failures = [var.node_pools]
}

run "refuses_a_gpu_pool_without_gpus" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = {
      all = { instance_types = ["m7i.large"], min_size = 1, max_size = 2 }
      gpu = { instance_types = ["c7i.large"], min_size = 0, max_size = 2, gpu = true }
    }
  }

  expect_failures = [var.node_pools]
}

run "refuses_gpus_without_a_gpu_pool" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = {
      all  = { instance_types = ["m7i.large"], min_size = 1, max_size = 2 }
      fast = { instance_types = ["g6.xlarge"], min_size = 0, max_size = 2 }
    }
  }

  expect_failures = [var.node_pools]
}

run "refuses_min_above_max" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = { all = { instance_types = ["m7i.large"], min_size = 3, max_size = 2 } }
  }

  expect_failures = [var.node_pools]
}

run "refuses_a_cluster_without_plain_nodes" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = { all = { instance_types = ["m7i.large"], min_size = 0, max_size = 2 } }
  }

  expect_failures = [var.node_pools]
}

run "refuses_a_role_twice" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = {
      a = { instance_types = ["m7i.large"], min_size = 1, max_size = 2, roles = ["hot"] }
      b = { instance_types = ["m7i.large"], min_size = 1, max_size = 2, roles = ["hot"] }
    }
  }

  expect_failures = [var.node_pools]
}

run "refuses_an_unknown_role" {
  command = plan

  module {
    source = "./modules/node_pools"
  }

  variables {
    node_pools = { all = { instance_types = ["m7i.large"], min_size = 1, max_size = 2, roles = ["lukewarm"] } }
  }

  expect_failures = [var.node_pools]
}
