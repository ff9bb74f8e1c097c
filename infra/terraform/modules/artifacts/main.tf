# Where releases lie: one bucket, encrypted under a key of our own, reached over TLS only.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  bucket  = coalesce(var.bucket_name, "${var.name}-releases-${local.account}-${data.aws_region.current.name}")
}

resource "aws_kms_key" "releases" {
  description             = "Releases and images of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
  tags                    = var.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "IamPoliciesOfTheAccountDecide"
      Effect    = "Allow"
      Principal = { AWS = "arn:${data.aws_partition.current.partition}:iam::${local.account}:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })
}

resource "aws_kms_alias" "releases" {
  name          = "alias/${var.name}-releases"
  target_key_id = aws_kms_key.releases.key_id
}

resource "aws_s3_bucket" "releases" { # BucketAlreadyExists? Choose another var.bucket_name.
  #checkov:skip=CKV_AWS_144:A release is rebuilt bit by bit from bundle and plan; a copy in another region is the user's choice.
  #checkov:skip=CKV2_AWS_62:Nothing listens to object events: a release is announced by its manifest.
  #checkov:skip=CKV_AWS_18:Access logs need a bucket of the user's own: access_log_bucket.
  bucket        = local.bucket
  force_destroy = var.force_destroy
  tags          = var.tags
}

resource "aws_s3_bucket_public_access_block" "releases" {
  bucket                  = aws_s3_bucket.releases.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "releases" {
  bucket = aws_s3_bucket.releases.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "releases" {
  bucket = aws_s3_bucket.releases.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "releases" {
  bucket = aws_s3_bucket.releases.id

  rule {
    bucket_key_enabled = true # one KMS call per bucket and hour rather than per object

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.releases.arn
    }
  }
}

# `erless releases prune` decides which releases go, because blobs are shared between them and their
# age tells nothing; the bucket only cleans up behind it.
resource "aws_s3_bucket_lifecycle_configuration" "releases" {
  bucket = aws_s3_bucket.releases.id

  rule {
    id     = "tier-old-releases"
    status = "Enabled"
    filter {
      prefix = "${var.release_prefix}/"
    }
    transition {
      days          = var.tier_after_days
      storage_class = "INTELLIGENT_TIERING"
    }
  }

  rule {
    id     = "drop-what-was-deleted"
    status = "Enabled"
    filter {
      prefix = ""
    }
    noncurrent_version_expiration {
      noncurrent_days = var.keep_deleted_days
    }
    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "drop-cut-off-uploads"
    status = "Enabled"
    filter {
      prefix = ""
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  depends_on = [aws_s3_bucket_versioning.releases]
}

resource "aws_s3_bucket_policy" "releases" {
  bucket = aws_s3_bucket.releases.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.releases.arn, "${aws_s3_bucket.releases.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "Tls12OrNewer"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.releases.arn, "${aws_s3_bucket.releases.arn}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
      },
    ]
  })

  depends_on = [aws_s3_bucket_public_access_block.releases]
}

resource "aws_s3_bucket_logging" "releases" {
  count = var.access_log_bucket == null ? 0 : 1

  bucket        = aws_s3_bucket.releases.id
  target_bucket = var.access_log_bucket
  target_prefix = "${local.bucket}/"
}
