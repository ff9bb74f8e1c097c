variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "cluster_name" {
  description = "The EKS cluster that nodes join."
  type        = string

  validation {
    condition     = length(var.cluster_name) > 0
    error_message = "cluster_name: must not be empty."
  }
}

variable "kubernetes_version" {
  description = "Kubernetes minor version of the nodes: the control plane's."
  type        = string

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "kubernetes_version: a minor version such as 1.34."
  }
}

variable "subnet_ids" {
  description = "Private subnets that nodes start in."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids: subnets of two or more zones."
  }
}

variable "node_level_addons" {
  description = "Add-ons that must exist before nodes join (their order in the apply comes from here)."
  type        = list(string)
  default     = []

  validation {
    condition     = length(distinct(var.node_level_addons)) == length(var.node_level_addons)
    error_message = "node_level_addons: each add-on once."
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

  validation {
    condition     = alltrue([for name in keys(var.node_pools) : can(regex("^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$", name))])
    error_message = "node_pools: names of up to 20 lower-case letters, digits and hyphens."
  }

  validation {
    condition     = anytrue([for pool in values(var.node_pools) : pool.min_size >= 1 && !pool.gpu && !pool.spot && length(pool.taints) == 0])
    error_message = "node_pools: one pool without GPU, spot and taints needs min_size of 1 or more: CoreDNS and Knative run there."
  }

  validation {
    condition     = alltrue([for pool in values(var.node_pools) : length(pool.instance_types) > 0 && alltrue([for type in pool.instance_types : can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", type))])])
    error_message = "node_pools: instance_types of each pool: one or more, such as c7i.2xlarge."
  }

  validation {
    condition = alltrue(flatten([for pool in values(var.node_pools) : [
      for type in pool.instance_types : can(regex("^((c|m|r)(5|5a|5n|5d|5ad|6i|6a|6id|6in|7i|7a|8i|8a|8id|8in|(6|7|8|9)g(d|n)?)|c7i-flex|m7i-flex|x2idn|x2iedn|x2iezn|x2gd|x8g|i3|i3en|i4i|i7i|i7ie|i4g|i8g|i8ge|im4gn|is4gen|t3|t3a|t4g|g4dn|g5|g6|g6e|gr6|p3|p4d|p4de|p5|p5e|p5en)\\.", type))
    ]]))
    error_message = "node_pools: unknown instance type family: ${join(", ", distinct(flatten([for name, pool in var.node_pools : [for type in pool.instance_types : "${name} has ${type}" if !can(regex("^((c|m|r)(5|5a|5n|5d|5ad|6i|6a|6id|6in|7i|7a|8i|8a|8id|8in|(6|7|8|9)g(d|n)?)|c7i-flex|m7i-flex|x2idn|x2iedn|x2iezn|x2gd|x8g|i3|i3en|i4i|i7i|i7ie|i4g|i8g|i8ge|im4gn|is4gen|t3|t3a|t4g|g4dn|g5|g6|g6e|gr6|p3|p4d|p4de|p5|p5e|p5en)\\.", type))]])))}."
  }

  validation {
    condition     = alltrue([for pool in values(var.node_pools) : length(distinct([for type in pool.instance_types : can(regex("^[a-z]+[0-9]+g[a-z]*\\.", type))])) <= 1])
    error_message = "node_pools: instance_types of a pool mix x86 and Graviton, whose images differ: ${join(", ", [for name, pool in var.node_pools : name if length(distinct([for type in pool.instance_types : can(regex("^[a-z]+[0-9]+g[a-z]*\\.", type))])) > 1])}."
  }

  validation {
    condition     = alltrue(flatten([for pool in values(var.node_pools) : [for type in pool.instance_types : can(regex("^(g|p)[0-9a-z]+\\.", type)) if pool.gpu]]))
    error_message = "node_pools: a pool with gpu = true needs instance types with NVIDIA GPUs, such as g6.xlarge: ${join(", ", flatten([for name, pool in var.node_pools : [for type in pool.instance_types : "${name} has ${type}" if pool.gpu && !can(regex("^(g|p)[0-9a-z]+\\.", type))]]))}."
  }

  validation {
    condition     = alltrue(flatten([for pool in values(var.node_pools) : [for type in pool.instance_types : !can(regex("^(g|p)[0-9a-z]+\\.", type)) if !pool.gpu]]))
    error_message = "node_pools: instance types with GPUs need gpu = true (driver, label and taint): ${join(", ", flatten([for name, pool in var.node_pools : [for type in pool.instance_types : "${name} has ${type}" if !pool.gpu && can(regex("^(g|p)[0-9a-z]+\\.", type))]]))}."
  }

  validation {
    condition     = alltrue([for pool in values(var.node_pools) : floor(pool.min_size) == pool.min_size && floor(pool.max_size) == pool.max_size && pool.min_size >= 0 && pool.max_size >= 1])
    error_message = "node_pools: min_size and max_size are whole numbers; min_size at least 0, max_size at least 1."
  }

  validation {
    condition     = alltrue([for pool in values(var.node_pools) : pool.min_size <= pool.max_size])
    error_message = "node_pools: min_size above max_size: ${join(", ", [for name, pool in var.node_pools : "${name} ${pool.min_size} > ${pool.max_size}" if pool.min_size > pool.max_size])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.node_pools) : pool.disk_gib >= 20 && pool.disk_gib <= 16384])
    error_message = "node_pools: disk_gib from 20 to 16384."
  }

  validation {
    condition     = alltrue(flatten([for pool in values(var.node_pools) : [for role in pool.roles : contains(["gateway", "dense", "hot", "warm", "cold", "frozen"], role)]]))
    error_message = "node_pools: roles are gateway, dense, hot, warm, cold and frozen."
  }

  validation {
    condition     = length(flatten([for pool in values(var.node_pools) : pool.roles])) == length(distinct(flatten([for pool in values(var.node_pools) : pool.roles])))
    error_message = "node_pools: a role belongs to one pool only."
  }

  validation {
    condition     = alltrue(flatten([for pool in values(var.node_pools) : [for taint in pool.taints : contains(["NO_SCHEDULE", "PREFER_NO_SCHEDULE", "NO_EXECUTE"], taint.effect)]]))
    error_message = "node_pools: a taint's effect is NO_SCHEDULE, PREFER_NO_SCHEDULE or NO_EXECUTE."
  }

  validation {
    condition     = alltrue(flatten([for pool in values(var.node_pools) : [for key in concat(keys(pool.labels), [for taint in pool.taints : taint.key]) : can(regex("^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", key))]]))
    error_message = "node_pools: keys of labels and taints are Kubernetes' label keys."
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
