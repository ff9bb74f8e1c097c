variable "name" {
  description = "Name of the cluster and prefix of every other resource's name."
  type        = string
  default     = "erless-production"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: a name such as us-east-1."
  }
}

variable "availability_zones" {
  description = "Zones of the region."
  type        = list(string)
  default     = ["us-east-1a", "us-east-1b", "us-east-1c"]

  validation {
    condition     = length(var.availability_zones) >= 2
    error_message = "availability_zones: two or more."
  }
}

variable "endpoint_public_access_cidrs" {
  description = "Networks that you reach the Kubernetes API from, such as your own address with /32; none makes it private to the VPC."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.endpoint_public_access_cidrs : can(cidrhost(cidr, 0))])
    error_message = "endpoint_public_access_cidrs: networks such as 203.0.113.7/32."
  }
}

variable "planned_pools" {
  description = "Written by `erless plan --nodes-from` this folder: instance types and sizes of the pools."
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
  }))
  default = {}

  validation {
    condition     = alltrue([for pool in values(var.planned_pools) : pool.min_size <= pool.max_size])
    error_message = "planned_pools: min_size above max_size."
  }
}

variable "force_destroy" {
  description = "Let `terraform destroy` delete the bucket with every release in it, and the images."
  type        = bool
  default     = false
}

variable "deployer_principal_arns" {
  description = "IAM roles and users that may take the deployer's role."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.deployer_principal_arns : startswith(arn, "arn:")])
    error_message = "deployer_principal_arns: ARNs of IAM roles or users."
  }
}

variable "budget" {
  description = "Dollars per month to be warned at, and who is told."
  type        = object({ limit_usd = number, emails = list(string) })
  default     = null

  validation {
    condition     = var.budget == null || try(var.budget.limit_usd > 0 && length(var.budget.emails) > 0, false)
    error_message = "budget: limit_usd above 0 and one e-mail address or more."
  }
}
