variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "cluster_name" {
  description = "The EKS cluster whose pods take the roles."
  type        = string

  validation {
    condition     = length(var.cluster_name) > 0
    error_message = "cluster_name: must not be empty."
  }
}

variable "cluster_arn" {
  description = "The cluster's ARN."
  type        = string

  validation {
    condition     = startswith(var.cluster_arn, "arn:")
    error_message = "cluster_arn: an ARN."
  }
}

variable "oidc_provider_arn" {
  description = "IAM's OpenID Connect provider of the cluster; used by credentials = irsa."
  type        = string

  validation {
    condition     = startswith(var.oidc_provider_arn, "arn:")
    error_message = "oidc_provider_arn: an ARN."
  }
}

variable "oidc_issuer" {
  description = "The issuer's host and path, without https://; used by credentials = irsa."
  type        = string

  validation {
    condition     = !startswith(var.oidc_issuer, "https://")
    error_message = "oidc_issuer: without https://."
  }
}

variable "bucket_arn" {
  description = "The releases' bucket."
  type        = string

  validation {
    condition     = startswith(var.bucket_arn, "arn:")
    error_message = "bucket_arn: an ARN."
  }
}

variable "release_prefix" {
  description = "Prefix inside the bucket under which releases lie: all that functions may read."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.release_prefix))
    error_message = "release_prefix: path segments of letters, digits, _ and -, without a slash at either end."
  }
}

variable "kms_key_arn" {
  description = "Key of releases and images."
  type        = string

  validation {
    condition     = startswith(var.kms_key_arn, "arn:")
    error_message = "kms_key_arn: an ARN."
  }
}

variable "repository_arns" {
  description = "Image repositories that the deployer pushes to."
  type        = list(string)

  validation {
    condition     = length(var.repository_arns) > 0
    error_message = "repository_arns: one or more."
  }
}

variable "credentials" {
  description = "How functions get their role: pod-identity (an EKS add-on) or irsa (roles for service accounts)."
  type        = string
  default     = "pod-identity"

  validation {
    condition     = contains(["pod-identity", "irsa"], var.credentials)
    error_message = "credentials: pod-identity or irsa."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the functions."
  type        = string
  default     = "erless"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace: a Kubernetes name of up to 63 lower-case letters, digits and hyphens."
  }
}

variable "service_account" {
  description = "Kubernetes service account of the functions."
  type        = string
  default     = "erless-functions"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.service_account))
    error_message = "service_account: a Kubernetes name of up to 63 lower-case letters, digits and hyphens."
  }
}

variable "deployer_principal_arns" {
  description = "IAM roles and users that may take the deployer's role; none lets the account's own IAM policies decide."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.deployer_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/.+$", arn))])
    error_message = "deployer_principal_arns: ARNs of IAM roles or users."
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
