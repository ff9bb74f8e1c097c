output "bucket" {
  description = "Name of the releases' bucket."
  value       = aws_s3_bucket.releases.id

  # who knows the name may write: let every protection be there first
  depends_on = [
    aws_s3_bucket_policy.releases,
    aws_s3_bucket_versioning.releases,
    aws_s3_bucket_server_side_encryption_configuration.releases,
  ]
}

output "bucket_arn" {
  description = "The bucket's ARN."
  value       = aws_s3_bucket.releases.arn
}

output "release_prefix" {
  description = "Prefix inside the bucket under which releases lie."
  value       = var.release_prefix
}

output "store_url" {
  description = "The store, as `erless pack --store` takes it."
  value       = "s3://${aws_s3_bucket.releases.id}/${var.release_prefix}"
}

output "kms_key_arn" {
  description = "Key of releases and images."
  value       = aws_kms_key.releases.arn
}

output "repositories" {
  description = "Image repository URL of each function kind."
  value       = { for kind, repository in aws_ecr_repository.function : kind => repository.repository_url }
}

output "repository_arns" {
  description = "ARNs of the image repositories."
  value       = [for repository in aws_ecr_repository.function : repository.arn]
}

output "registry_url" {
  description = "What the repositories' URLs have in common: registry host and name."
  value       = trimsuffix(values(aws_ecr_repository.function)[0].repository_url, "/${keys(aws_ecr_repository.function)[0]}")
}
