# The cluster autoscaler's role: look at everything, resize only groups of this cluster.

resource "aws_iam_role" "autoscaler" {
  name               = "${var.name}-autoscaler"
  description        = "Cluster autoscaler of ${var.name}"
  assume_role_policy = var.credentials == "irsa" ? local.irsa["autoscaler"] : local.pod_identity
  tags               = var.tags
}

resource "aws_iam_role_policy" "autoscaler" {
  #checkov:skip=CKV_AWS_355:The Describe actions know no resources; the two that change something are bound to this cluster's tag.
  name = "resize-node-pools"
  role = aws_iam_role.autoscaler.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "Look"
        Effect = "Allow"
        Action = [
          "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances",
          "autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeScalingActivities", "autoscaling:DescribeTags",
          "ec2:DescribeImages", "ec2:DescribeInstanceTypes", "ec2:DescribeLaunchTemplateVersions",
          "ec2:GetInstanceTypesFromInstanceRequirements",
        ]
        Resource = "*"
      },
      {
        Sid       = "Resize"
        Effect    = "Allow"
        Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
        Resource  = "arn:${data.aws_partition.current.partition}:autoscaling:*:${local.account}:autoScalingGroup:*:autoScalingGroupName/*"
        Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.cluster_name}" = "owned" } }
      },
      {
        Sid      = "LookAtNodeGroups"
        Effect   = "Allow"
        Action   = "eks:DescribeNodegroup"
        Resource = "${replace(var.cluster_arn, ":cluster/", ":nodegroup/")}/*"
      },
    ]
  })
}

resource "aws_eks_pod_identity_association" "autoscaler" {
  count = var.credentials == "pod-identity" ? 1 : 0

  cluster_name    = var.cluster_name
  namespace       = "kube-system"
  service_account = "cluster-autoscaler"
  role_arn        = aws_iam_role.autoscaler.arn
  tags            = var.tags
}
