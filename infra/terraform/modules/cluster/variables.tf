variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "kubernetes_version" {
  description = "Kubernetes minor version of the control plane, such as 1.34."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version)) && try(tonumber(split(".", var.kubernetes_version)[1]) >= 29, false)
    error_message = "kubernetes_version: a minor version from 1.29 on, such as 1.34 (AL2023 nodes and pod identity need it)."
  }
}

variable "subnet_ids" {
  description = "Private subnets of two or more zones, for the control plane's network interfaces."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids: subnets of two or more zones."
  }
}

variable "vpc_cidr" {
  description = "The VPC's range; only compared with service_cidr."
  type        = string

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0))
    error_message = "vpc_cidr: a network such as 10.42.0.0/16."
  }
}

variable "service_cidr" {
  description = "Range of Kubernetes services inside the cluster; must not overlap the VPC."
  type        = string
  default     = "172.20.0.0/16"

  validation {
    condition = can(cidrhost(var.service_cidr, 0)) && try(
      tonumber(split("/", var.service_cidr)[1]) >= 12 && tonumber(split("/", var.service_cidr)[1]) <= 24
      && can(regex("^(10|172\\.(1[6-9]|2[0-9]|3[01])|192\\.168)\\.", var.service_cidr))
    , false)
    error_message = "service_cidr: a private network (10/8, 172.16/12 or 192.168/16) from /12 to /24."
  }
}

variable "endpoint_public_access_cidrs" {
  description = "Networks that reach the Kubernetes API from outside the VPC; none makes the endpoint private."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.endpoint_public_access_cidrs : can(regex("^[0-9.]+/[0-9]+$", cidr)) && can(cidrhost(cidr, 0))])
    error_message = "endpoint_public_access_cidrs: IPv4 networks such as 203.0.113.7/32."
  }

  validation {
    condition     = !contains([for cidr in var.endpoint_public_access_cidrs : try(split("/", cidr)[1], "")], "0")
    error_message = "endpoint_public_access_cidrs: the whole internet is refused; name the networks that you work from."
  }
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster, besides whoever creates it."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.admin_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/.+$", arn))])
    error_message = "admin_principal_arns: ARNs of IAM roles or users."
  }
}

variable "log_retention_days" {
  description = "How long CloudWatch keeps the control plane's logs."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096], var.log_retention_days)
    error_message = "log_retention_days: a period that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731 or 1096."
  }
}

variable "addons" {
  description = "EKS add-ons and their versions; null takes the default of the Kubernetes version."
  type        = map(string)
  default = {
    vpc-cni                = null
    kube-proxy             = null
    eks-pod-identity-agent = null
    coredns                = null
    aws-ebs-csi-driver     = null
  }

  validation {
    condition     = alltrue([for version in values(var.addons) : version == null || can(regex("^v[0-9]+\\.[0-9]+\\.[0-9]+-eksbuild\\.[0-9]+$", version))])
    error_message = "addons: versions such as v1.19.0-eksbuild.1, or null."
  }
}

variable "nodes_ready" {
  description = "Any value that is known once nodes run; add-ons made of pods wait for it."
  type        = any
  default     = null

  validation {
    condition     = var.nodes_ready == null || can(jsonencode(var.nodes_ready))
    error_message = "nodes_ready: any value."
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
