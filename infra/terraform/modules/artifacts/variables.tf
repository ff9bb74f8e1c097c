variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "bucket_name" {
  description = "Name of the releases' bucket, unique in all of AWS; null derives one from name, account and region."
  type        = string
  default     = null

  validation {
    condition = var.bucket_name == null || try(
      can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
      && !can(regex("^(xn--|sthree-|amzn-s3-demo-)|(-s3alias|--ol-s3|--x-s3|--table-s3)$", var.bucket_name))
    , false)
    error_message = "bucket_name: 3 to 63 lower-case letters, digits and hyphens (no dots: TLS), without the prefixes and suffixes that AWS reserves."
  }
}

variable "release_prefix" {
  description = "Prefix inside the bucket under which releases lie."
  type        = string
  default     = "releases"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.release_prefix))
    error_message = "release_prefix: path segments of letters, digits, _ and -, without a slash at either end."
  }
}

variable "keep_deleted_days" {
  description = "How long objects that `erless releases prune` deleted, or an overwrite replaced, can be brought back."
  type        = number
  default     = 30

  validation {
    condition     = floor(var.keep_deleted_days) == var.keep_deleted_days && var.keep_deleted_days >= 1 && var.keep_deleted_days <= 3650
    error_message = "keep_deleted_days: whole days from 1 to 3650."
  }
}

variable "tier_after_days" {
  description = "Age at which a release's files move to Intelligent-Tiering, which makes what nobody loads cheaper; reads stay as fast."
  type        = number
  default     = 30

  validation {
    condition     = floor(var.tier_after_days) == var.tier_after_days && var.tier_after_days >= 1 && var.tier_after_days <= 3650
    error_message = "tier_after_days: whole days from 1 to 3650."
  }
}

variable "access_log_bucket" {
  description = "Existing bucket for S3 access logs; null keeps none."
  type        = string
  default     = null

  validation {
    condition     = var.access_log_bucket == null || can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.access_log_bucket))
    error_message = "access_log_bucket: a bucket's name."
  }
}

variable "functions" {
  description = "Function kinds; each has an image repository."
  type        = set(string)
  default     = ["gateway", "sparse", "dense"]

  validation {
    condition     = length(var.functions) > 0 && alltrue([for kind in var.functions : can(regex("^[a-z][a-z0-9-]*$", kind))])
    error_message = "functions: one or more names of lower-case letters, digits and hyphens."
  }
}

variable "untagged_image_days" {
  description = "Age at which images without a tag go. Tagged images stay: a live release refers to its images by digest."
  type        = number
  default     = 14

  validation {
    condition     = floor(var.untagged_image_days) == var.untagged_image_days && var.untagged_image_days >= 1
    error_message = "untagged_image_days: whole days, 1 or more."
  }
}

variable "force_destroy" {
  description = "Let `terraform destroy` delete a bucket and repositories that are not empty, with every release in them."
  type        = bool
  default     = false

  validation {
    condition     = var.force_destroy != null
    error_message = "force_destroy: true or false."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.tags : !startswith(lower(key), "aws:") && length(key) <= 128 && length(value) <= 256])
    error_message = "tags: keys of up to 128 characters that do not begin with aws:, values of up to 256."
  }
}
