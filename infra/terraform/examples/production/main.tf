# Three zones, NAT in each, a pool per kind of work, GPUs from zero, an alarm on the bill.

provider "aws" {
  region = var.region
}

module "erless" {
  source = "../.."

  name                         = var.name
  availability_zones           = var.availability_zones
  nat_gateways                 = "per_zone"
  interface_endpoints          = ["ecr.api", "ecr.dkr", "ec2", "eks-auth", "logs", "sts"]
  endpoint_public_access_cidrs = var.endpoint_public_access_cidrs
  deployer_principal_arns      = var.deployer_principal_arns
  force_destroy                = var.force_destroy
  planned_pools                = var.planned_pools
  budget                       = var.budget
  tags                         = { project = var.name }

  node_pools = {
    system = {
      instance_types = ["m7i.large"]
      min_size       = 3
      max_size       = 6
    }
    hot = {
      instance_types = ["c7i.2xlarge"]
      min_size       = 2
      max_size       = 20
      roles          = ["gateway", "hot", "warm"]
    }
    cold = {
      instance_types = ["r7i.2xlarge"]
      min_size       = 1
      max_size       = 8
      roles          = ["cold", "frozen"]
      disk_gib       = 500
    }
    gpu = {
      instance_types = ["g6.xlarge"]
      min_size       = 0
      max_size       = 4
      roles          = ["dense"]
      gpu            = true
      disk_gib       = 200
    }
  }
}
