# What a user sets. The modules check again, in more depth, what they are given.

variable "name" {
  description = "Name of the cluster and prefix of every other resource's name."
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

variable "vpc_cidr" {
  description = "IPv4 range of the VPC, /16 to /22. Pods take their addresses from it."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition = can(cidrhost(var.vpc_cidr, 0)) && try(
      cidrhost(var.vpc_cidr, 0) == split("/", var.vpc_cidr)[0]
      && tonumber(split("/", var.vpc_cidr)[1]) >= 16
      && tonumber(split("/", var.vpc_cidr)[1]) <= 22
    , false)
    error_message = "vpc_cidr: an IPv4 network from /16 to /22, such as 10.42.0.0/16."
  }
}

variable "availability_zones" {
  description = "Zones to use, two to six of the region; null takes its first three."
  type        = list(string)
  default     = null

  validation {
    condition     = var.availability_zones == null || try(length(var.availability_zones) >= 2 && length(var.availability_zones) <= 6, false)
    error_message = "availability_zones: two to six zones; EKS refuses a single one, and so does a zone's outage."
  }
}

variable "private_subnet_cidrs" {
  description = "Ranges of the nodes' subnets, one per zone; null derives them from vpc_cidr."
  type        = list(string)
  default     = null

  validation {
    condition     = alltrue([for cidr in coalesce(var.private_subnet_cidrs, []) : can(regex("^[0-9.]+/[0-9]+$", cidr)) && can(cidrhost(cidr, 0))])
    error_message = "private_subnet_cidrs: IPv4 networks such as 10.42.0.0/19."
  }
}

variable "public_subnet_cidrs" {
  description = "Ranges of the load balancers' and NAT gateways' subnets, one per zone; null derives them from vpc_cidr."
  type        = list(string)
  default     = null

  validation {
    condition     = alltrue([for cidr in coalesce(var.public_subnet_cidrs, []) : can(regex("^[0-9.]+/[0-9]+$", cidr)) && can(cidrhost(cidr, 0))])
    error_message = "public_subnet_cidrs: IPv4 networks such as 10.42.192.0/22."
  }
}

variable "nat_gateways" {
  description = "single: one for all zones (cheapest); per_zone: one in each (survives a zone's outage, no traffic between zones)."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["single", "per_zone"], var.nat_gateways)
    error_message = "nat_gateways: single or per_zone."
  }
}

variable "interface_endpoints" {
  description = "AWS services that nodes reach inside the VPC, besides S3 (which is free): image pulls and credentials then pay no NAT."
  type        = set(string)
  default     = ["ecr.api", "ecr.dkr"]

  validation {
    condition     = alltrue([for service in var.interface_endpoints : can(regex("^[a-z][a-z0-9-]*(\\.[a-z0-9-]+)*$", service))])
    error_message = "interface_endpoints: service names without their com.amazonaws.REGION prefix, such as ecr.api."
  }
}

variable "flow_log_retention_days" {
  description = "How long CloudWatch keeps the VPC's flow logs; 0 makes none."
  type        = number
  default     = 365

  validation {
    condition     = contains([0, 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096], var.flow_log_retention_days)
    error_message = "flow_log_retention_days: 0, or a period that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731 or 1096."
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

variable "node_pools" {
  description = <<-EOT
    Node pools by name.
    instance_types: of one architecture, equally large (the cluster autoscaler reckons with equal nodes).
    min_size, max_size: nodes; min_size 0 scales from zero.
    roles: what erless places here: gateway, dense, hot, warm, cold, frozen.
    gpu: NVIDIA AMI, label nvidia.com/gpu.present, taint nvidia.com/gpu.
    spot: spare capacity, cheaper, taken back on two minutes' notice.
    disk_gib: encrypted gp3 root disk; it also holds the shard cache.
    local_nvme: join the instance's own NVMe disks and keep pods and shard cache there.
    labels, taints: more than erless' own.
  EOT
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
    roles          = optional(list(string), [])
    gpu            = optional(bool, false)
    spot           = optional(bool, false)
    disk_gib       = optional(number, 100)
    local_nvme     = optional(bool, false)
    labels         = optional(map(string), {})
    taints = optional(list(object({
      key    = string
      value  = optional(string)
      effect = optional(string, "NO_SCHEDULE")
    })), [])
  }))

  default = {
    system = { instance_types = ["m7i.large"], min_size = 2, max_size = 3 }
    hot    = { instance_types = ["c7i.2xlarge"], min_size = 1, max_size = 10, roles = ["gateway", "dense", "hot", "warm"] }
    cold   = { instance_types = ["r7i.2xlarge"], min_size = 1, max_size = 4, roles = ["cold", "frozen"], disk_gib = 200 }
  }

  validation {
    condition     = length(var.node_pools) > 0 && alltrue([for pool in values(var.node_pools) : pool.min_size <= pool.max_size])
    error_message = "node_pools: one pool or more, none with min_size above max_size."
  }
}

variable "planned_pools" {
  description = "What `erless plan --nodes-from` found: instance types and sizes, which take the place of those in node_pools."
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
  }))
  default = {}

  validation {
    condition     = alltrue([for pool in values(var.planned_pools) : length(pool.instance_types) > 0 && pool.min_size <= pool.max_size])
    error_message = "planned_pools: instance types of each pool, and min_size no larger than max_size."
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

variable "budget" {
  description = "Monthly budget with an alarm by e-mail; null makes none. It counts the whole account unless cost_tag says otherwise."
  type = object({
    limit_usd  = number
    emails     = list(string)
    thresholds = optional(list(number), [50, 80, 100])
    cost_tag   = optional(object({ key = string, value = string }))
  })
  default = null

  validation {
    condition     = var.budget == null || try(var.budget.limit_usd > 0 && length(var.budget.emails) > 0, false)
    error_message = "budget: limit_usd above 0 and one e-mail address or more."
  }
}

variable "canary" {
  description = "An access key without rights, to leave where only a thief looks, and what its use is told to; null makes none."
  type = object({
    alarm_arn = string
    role      = optional(string, "release-uploader")
  })
  default = null

  validation {
    condition     = var.canary == null || try(startswith(var.canary.alarm_arn, "arn:"), false)
    error_message = "canary: the ARN of an SNS topic, SQS queue or Lambda function as alarm_arn."
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
