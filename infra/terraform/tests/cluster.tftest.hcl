# The cluster, planned without an account.

mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  name       = "recs"
  vpc_cidr   = "10.42.0.0/16"
  subnet_ids = ["subnet-1", "subnet-2"]
}

run "private_encrypted_and_logged" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "the API is private by default"
  }

  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"]) && aws_kms_key.cluster.enable_key_rotation
    error_message = "secrets are encrypted under a rotating key"
  }

  assert {
    condition     = aws_eks_cluster.this.enabled_cluster_log_types == toset(["api", "audit", "authenticator", "controllerManager", "scheduler"])
    error_message = "every control-plane log is on"
  }

  assert {
    condition     = aws_cloudwatch_log_group.control_plane.name == "/aws/eks/recs/cluster" && aws_cloudwatch_log_group.control_plane.retention_in_days == 365
    error_message = "the log group that EKS writes to has a retention"
  }

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API"
    error_message = "access is by access entries"
  }

  assert {
    condition     = toset(concat(keys(aws_eks_addon.before_nodes), keys(aws_eks_addon.after_nodes))) == toset(["vpc-cni", "kube-proxy", "eks-pod-identity-agent", "coredns", "aws-ebs-csi-driver"])
    error_message = "all five add-ons"
  }

  assert {
    condition     = one(aws_eks_addon.after_nodes["aws-ebs-csi-driver"].pod_identity_association).service_account == "ebs-csi-controller-sa"
    error_message = "the EBS driver has a role of its own"
  }

  assert {
    condition     = jsondecode(aws_iam_role.ebs[0].assume_role_policy).Statement[0].Action == ["sts:AssumeRole", "sts:TagSession"]
    error_message = "pod identity tags its sessions"
  }
}

run "reached_from_named_networks" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  variables {
    endpoint_public_access_cidrs = ["203.0.113.7/32"]
    admin_principal_arns         = ["arn:aws:iam::123456789012:role/admins"]
    addons                       = { vpc-cni = "v1.19.0-eksbuild.1" }
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.7/32"])
    error_message = "public for the named network only"
  }

  assert {
    condition     = aws_eks_access_policy_association.admin["arn:aws:iam::123456789012:role/admins"].policy_arn == "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
    error_message = "admins administer"
  }

  assert {
    condition     = aws_eks_addon.before_nodes["vpc-cni"].addon_version == "v1.19.0-eksbuild.1" && length(aws_iam_role.ebs) == 0
    error_message = "add-ons can be pinned and left out"
  }
}

run "refuses_the_whole_internet" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  variables {
    endpoint_public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.endpoint_public_access_cidrs]
}

run "refuses_services_inside_the_vpc" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  variables {
    service_cidr = "10.42.128.0/20"
  }

  expect_failures = [aws_eks_cluster.this]
}

run "refuses_old_kubernetes" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  variables {
    kubernetes_version = "1.24"
  }

  expect_failures = [var.kubernetes_version]
}

run "refuses_unknown_retention" {
  command = plan

  module {
    source = "./modules/cluster"
  }

  variables {
    log_retention_days = 42
  }

  expect_failures = [var.log_retention_days]
}
