# The functions' role: read what lies under the releases' prefix, and nothing else.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account  = data.aws_caller_identity.current.account_id
  releases = "${var.bucket_arn}/${var.release_prefix}/*"

  # Who may take which role, as namespace:service account.
  accounts = {
    functions  = "${var.namespace}:${var.service_account}"
    autoscaler = "kube-system:cluster-autoscaler"
  }
  pod_identity = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = { "aws:SourceAccount" = local.account }
        ArnEquals    = { "aws:SourceArn" = var.cluster_arn }
      }
    }]
  })
  irsa = {
    for who, account in local.accounts : who => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Principal = { Federated = var.oidc_provider_arn }
        Action    = "sts:AssumeRoleWithWebIdentity"
        Condition = {
          StringEquals = {
            "${var.oidc_issuer}:sub" = "system:serviceaccount:${account}"
            "${var.oidc_issuer}:aud" = "sts.amazonaws.com"
          }
        }
      }]
    })
  }
}

resource "aws_iam_role" "functions" {
  name               = "${var.name}-functions"
  description        = "Functions of ${var.name}: read releases"
  assume_role_policy = var.credentials == "irsa" ? local.irsa["functions"] : local.pod_identity
  tags               = var.tags
}

resource "aws_iam_role_policy" "functions" {
  name = "read-releases"
  role = aws_iam_role.functions.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Sid = "Read", Effect = "Allow", Action = "s3:GetObject", Resource = local.releases },
      {
        # without it S3 answers 403 for a missing file, where 404 tells more
        Sid       = "TellMissingFromForbidden"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = var.bucket_arn
        Condition = { StringLike = { "s3:prefix" = "${var.release_prefix}/*" } }
      },
      { Sid = "Decrypt", Effect = "Allow", Action = "kms:Decrypt", Resource = var.kms_key_arn },
    ]
  })
}

resource "aws_eks_pod_identity_association" "functions" {
  count = var.credentials == "pod-identity" ? 1 : 0

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = var.service_account
  role_arn        = aws_iam_role.functions.arn
  tags            = var.tags
}
