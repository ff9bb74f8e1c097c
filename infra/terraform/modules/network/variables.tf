variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
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
  description = "Zones to use, two to six of one region."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 6
    error_message = "availability_zones: two to six zones; EKS refuses a single one, and so does a zone's outage."
  }

  validation {
    condition     = length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "availability_zones: each zone once."
  }

  validation {
    condition     = alltrue([for zone in var.availability_zones : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))])
    error_message = "availability_zones: names such as eu-central-1a."
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

  validation {
    # Two networks overlap when they are equal under the shorter of their prefixes.
    condition = try(alltrue(flatten([
      for i, a in coalesce(var.private_subnet_cidrs, []) : [
        for j, b in coalesce(var.private_subnet_cidrs, []) : i == j || (
          cidrhost("${split("/", a)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0)
          != cidrhost("${split("/", b)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0)
        )
      ]
    ])), true)
    error_message = "private_subnet_cidrs: networks overlap."
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

  validation {
    condition = try(alltrue(flatten([
      for i, a in coalesce(var.public_subnet_cidrs, []) : [
        for j, b in coalesce(var.public_subnet_cidrs, []) : i == j || (
          cidrhost("${split("/", a)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0)
          != cidrhost("${split("/", b)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0)
        )
      ]
    ])), true)
    error_message = "public_subnet_cidrs: networks overlap."
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

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.tags : !startswith(lower(key), "aws:") && length(key) <= 128 && length(value) <= 256])
    error_message = "tags: keys of up to 128 characters that do not begin with aws:, values of up to 256."
  }
}
