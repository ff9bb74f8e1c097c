# The deployer's role, for people and CI: write releases, push images, find the cluster. In the
# cluster it belongs to the group erless:deployers, which `erless cluster init` lets administer the
# functions' namespace.

resource "aws_iam_role" "deployer" {
  name        = "${var.name}-deployer"
  description = "Deploys releases of ${var.name}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect = "Allow"
      Principal = {
        AWS = length(var.deployer_principal_arns) > 0 ? var.deployer_principal_arns : ["arn:${data.aws_partition.current.partition}:iam::${local.account}:root"]
      }
      Action = "sts:AssumeRole"
    }]
  })
  tags = var.tags
}

resource "aws_iam_role_policy" "deployer" {
  #checkov:skip=CKV_AWS_290:ecr:GetAuthorizationToken knows no resources; every other statement names its own.
  #checkov:skip=CKV_AWS_355:ecr:GetAuthorizationToken knows no resources; every other statement names its own.
  name = "deploy"
  role = aws_iam_role.deployer.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "WriteReleases"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = local.releases
      },
      {
        # IfExists: HeadBucket, which tells a missing bucket from a missing file, names no prefix
        Sid       = "ListReleases"
        Effect    = "Allow"
        Action    = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
        Resource  = var.bucket_arn
        Condition = { StringLikeIfExists = { "s3:prefix" = "${var.release_prefix}/*" } }
      },
      { Sid = "Encrypt", Effect = "Allow", Action = ["kms:GenerateDataKey", "kms:Decrypt"], Resource = var.kms_key_arn },
      { Sid = "LogInToRegistry", Effect = "Allow", Action = "ecr:GetAuthorizationToken", Resource = "*" },
      {
        Sid    = "PushImages"
        Effect = "Allow"
        Action = [
          "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload", "ecr:DescribeImages",
          "ecr:GetDownloadUrlForLayer", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
        ]
        Resource = var.repository_arns
      },
      { Sid = "FindCluster", Effect = "Allow", Action = "eks:DescribeCluster", Resource = var.cluster_arn },
    ]
  })
}

resource "aws_eks_access_entry" "deployer" {
  cluster_name      = var.cluster_name
  principal_arn     = aws_iam_role.deployer.arn
  kubernetes_groups = ["erless:deployers"]
  tags              = var.tags
}
