# The least that runs erless: two zones, one NAT gateway, one pool for every role.

provider "aws" {
  region = var.region
}

module "erless" {
  source = "../.."

  name                         = var.name
  availability_zones           = var.availability_zones
  nat_gateways                 = "single"
  interface_endpoints          = []
  flow_log_retention_days      = 0
  log_retention_days           = 30
  endpoint_public_access_cidrs = var.endpoint_public_access_cidrs
  force_destroy                = var.force_destroy
  planned_pools                = var.planned_pools
  tags                         = { project = var.name }

  node_pools = {
    all = {
      instance_types = ["m7i.xlarge"]
      min_size       = 1
      max_size       = 4
      roles          = ["gateway", "dense", "hot", "warm", "cold", "frozen"]
    }
  }
}
