# Where images lie: one repository per function kind.

resource "aws_ecr_repository" "function" {
  for_each = var.functions

  name                 = "${var.name}/${each.key}"
  image_tag_mutability = "IMMUTABLE"
  force_delete         = var.force_destroy
  tags                 = var.tags

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.releases.arn
  }
}

# Releases name images by digest, so no rule may count tagged images away under a live release.
resource "aws_ecr_lifecycle_policy" "function" {
  for_each = var.functions

  repository = aws_ecr_repository.function[each.key].name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "Images without a tag go after ${var.untagged_image_days} days"
      selection = {
        tagStatus   = "untagged"
        countType   = "sinceImagePushed"
        countUnit   = "days"
        countNumber = var.untagged_image_days
      }
      action = { type = "expire" }
    }]
  })
}
