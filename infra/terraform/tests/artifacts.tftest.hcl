# Bucket and registry, without an account. The policy needs the ARN, so the first run applies (to mocks).

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
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::recs" }
  }
}

variables {
  name = "recs"
}

run "bucket" {
  command = apply

  module {
    source = "./modules/artifacts"
  }

  assert {
    condition     = aws_s3_bucket.releases.bucket == "recs-releases-123456789012-eu-central-1" && !aws_s3_bucket.releases.force_destroy
    error_message = "a name that nobody else has, and not deleted with what is in it"
  }

  assert {
    condition     = aws_s3_bucket_versioning.releases.versioning_configuration[0].status == "Enabled"
    error_message = "versioned"
  }

  assert {
    condition     = alltrue([for rule in aws_s3_bucket_server_side_encryption_configuration.releases.rule : rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms" && rule.bucket_key_enabled])
    error_message = "encrypted under our key"
  }

  assert {
    condition     = aws_s3_bucket_public_access_block.releases.block_public_acls && aws_s3_bucket_public_access_block.releases.block_public_policy && aws_s3_bucket_public_access_block.releases.ignore_public_acls && aws_s3_bucket_public_access_block.releases.restrict_public_buckets
    error_message = "public access blocked, four ways"
  }

  assert {
    condition = [for statement in jsondecode(aws_s3_bucket_policy.releases.policy).Statement : [statement.Effect, statement.Condition]] == [
      ["Deny", { Bool = { "aws:SecureTransport" = "false" } }],
      ["Deny", { NumericLessThan = { "s3:TlsVersion" = "1.2" } }],
    ]
    error_message = "TLS 1.2 or newer only"
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.releases.rule : rule.noncurrent_version_expiration[0].noncurrent_days if rule.id == "drop-what-was-deleted"]) == 30
    error_message = "deleted releases can be brought back for 30 days"
  }

  assert {
    condition     = toset([for rule in aws_s3_bucket_lifecycle_configuration.releases.rule : rule.id if length(rule.transition) > 0]) == toset(["tier-old-releases"])
    error_message = "old files become cheaper"
  }
}

run "registry" {
  command = plan

  module {
    source = "./modules/artifacts"
  }

  assert {
    condition     = toset([for repository in aws_ecr_repository.function : repository.name]) == toset(["recs/gateway", "recs/sparse", "recs/dense"])
    error_message = "a repository per function"
  }

  assert {
    condition     = alltrue([for repository in aws_ecr_repository.function : repository.image_tag_mutability == "IMMUTABLE" && repository.image_scanning_configuration[0].scan_on_push])
    error_message = "immutable tags, scanned on push"
  }

  assert {
    condition     = alltrue(flatten([for policy in aws_ecr_lifecycle_policy.function : [for rule in jsondecode(policy.policy).rules : rule.selection.tagStatus == "untagged"]]))
    error_message = "only untagged images expire: releases name images by digest"
  }
}

run "own_name" {
  command = plan

  module {
    source = "./modules/artifacts"
  }

  variables {
    bucket_name    = "my-releases"
    release_prefix = "team/recs"
  }

  assert {
    condition     = aws_s3_bucket.releases.bucket == "my-releases"
    error_message = "the name given"
  }
}

run "refuses_a_bad_bucket_name" {
  command = plan

  module {
    source = "./modules/artifacts"
  }

  variables {
    bucket_name = "My_Bucket"
  }

  expect_failures = [var.bucket_name]
}

run "refuses_a_reserved_bucket_name" {
  command = plan

  module {
    source = "./modules/artifacts"
  }

  variables {
    bucket_name = "releases-s3alias"
  }

  expect_failures = [var.bucket_name]
}

run "refuses_a_prefix_with_slashes_at_its_ends" {
  command = plan

  module {
    source = "./modules/artifacts"
  }

  variables {
    release_prefix = "/releases/"
  }

  expect_failures = [var.release_prefix]
}
