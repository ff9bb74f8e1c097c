# EKS add-ons. Those of the nodes themselves come before any node; those made of ordinary pods only
# become active once a node runs them.

locals {
  node_level = ["vpc-cni", "kube-proxy", "eks-pod-identity-agent"]
  ebs        = "aws-ebs-csi-driver"
}

resource "aws_eks_addon" "before_nodes" {
  for_each = { for name, version in var.addons : name => version if contains(local.node_level, name) }

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = var.tags
}

resource "aws_eks_addon" "after_nodes" {
  for_each = { for name, version in var.addons : name => version if !contains(local.node_level, name) }

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = var.tags

  dynamic "pod_identity_association" {
    for_each = each.key == local.ebs ? [aws_iam_role.ebs[0].arn] : []
    content {
      role_arn        = pod_identity_association.value
      service_account = "ebs-csi-controller-sa"
    }
  }

  depends_on = [aws_eks_addon.before_nodes, aws_iam_role_policy_attachment.ebs, var.nodes_ready]
}

resource "aws_iam_role" "ebs" {
  count = contains(keys(var.addons), local.ebs) ? 1 : 0

  name = "${var.name}-ebs-csi"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "ebs" {
  count = contains(keys(var.addons), local.ebs) ? 1 : 0

  role       = aws_iam_role.ebs[0].name
  policy_arn = "${local.iam}/service-role/AmazonEBSCSIDriverPolicy"
}
