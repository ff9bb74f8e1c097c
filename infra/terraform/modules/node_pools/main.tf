# Managed node groups, one per pool, each behind a launch template that keeps instance metadata to
# IMDSv2 and disks encrypted. erless places functions by the label erless.dev/pool.

data "aws_partition" "current" {}

locals {
  # Families with a g behind their generation are Graviton's: c7g, r8gd, x2gd, im4gn.
  arm64     = { for name, pool in var.node_pools : name => can(regex("^[a-z]+[0-9]+g[a-z]*\\.", pool.instance_types[0])) }
  gpu_label = "nvidia.com/gpu.present"
  gpu_taint = { key = "nvidia.com/gpu", value = "true", effect = "NO_SCHEDULE" }

  labels = {
    for name, pool in var.node_pools : name => merge(
      pool.labels, { "erless.dev/pool" = name }, pool.gpu ? { (local.gpu_label) = "true" } : {}
    )
  }
  taints = { for name, pool in var.node_pools : name => concat(pool.gpu ? [local.gpu_taint] : [], pool.taints) }

  # Kubernetes spells the effects of taints otherwise than EKS.
  effects = { NO_SCHEDULE = "NoSchedule", PREFER_NO_SCHEDULE = "PreferNoSchedule", NO_EXECUTE = "NoExecute" }

  # What pods of a pool must carry to land there.
  placement = {
    for name, pool in var.node_pools : name => {
      node_selector = merge(
        { "erless.dev/pool" = name },
        pool.gpu ? { (local.gpu_label) = "true" } : {},
        local.arm64[name] ? { "kubernetes.io/arch" = "arm64" } : {},
      )
      tolerations = [
        for taint in local.taints[name] : {
          key      = taint.key
          operator = taint.value == null ? "Exists" : "Equal"
          value    = taint.value
          effect   = local.effects[taint.effect]
        }
      ]
    }
  }
}

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.key}"
}

resource "aws_launch_template" "pool" {
  for_each = var.node_pools

  name                   = "${var.name}-${each.key}"
  description            = "Nodes of pool ${each.key}"
  update_default_version = true
  tags                   = var.tags

  # Hop limit 1: pods cannot reach the node's credentials.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.disk_gib
      encrypted             = "true"
      delete_on_termination = "true"
    }
  }

  monitoring {
    enabled = true
  }

  # nodeadm joins the local disks to one RAID 0 under kubelet and containerd.
  user_data = each.value.local_nvme ? base64encode(join("\n", [
    "MIME-Version: 1.0",
    "Content-Type: multipart/mixed; boundary=\"BOUNDARY\"",
    "",
    "--BOUNDARY",
    "Content-Type: application/node.eks.aws",
    "",
    "---",
    "apiVersion: node.eks.aws/v1alpha1",
    "kind: NodeConfig",
    "spec:",
    "  instance:",
    "    localStorage:",
    "      strategy: RAID0",
    "",
    "--BOUNDARY--",
    "",
  ])) : null

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-${each.key}" })
    }
  }
}

resource "aws_eks_node_group" "pool" {
  for_each = var.node_pools

  cluster_name    = var.cluster_name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  version         = var.kubernetes_version
  ami_type        = each.value.gpu ? "AL2023_x86_64_NVIDIA" : local.arm64[each.key] ? "AL2023_ARM_64_STANDARD" : "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.spot ? "SPOT" : "ON_DEMAND"
  instance_types  = each.value.instance_types
  labels          = local.labels[each.key]
  tags            = var.tags

  scaling_config {
    min_size     = each.value.min_size
    desired_size = each.value.min_size
    max_size     = each.value.max_size
  }

  update_config {
    max_unavailable_percentage = 33
  }

  launch_template {
    id      = aws_launch_template.pool[each.key].id
    version = aws_launch_template.pool[each.key].latest_version
  }

  dynamic "taint" {
    for_each = local.taints[each.key]
    content {
      key    = taint.value.key
      value  = taint.value.value
      effect = taint.value.effect
    }
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.node, var.node_level_addons]
}
