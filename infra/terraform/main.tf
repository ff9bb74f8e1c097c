# What erless deploys to: a network, an EKS cluster with node pools, a bucket for releases, a
# registry for images, and the roles that may touch them. The AWS provider comes from the caller, or
# from the environment where this folder is applied itself.

data "aws_region" "current" {}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:Only the first three by name are taken, and only where availability_zones does not say.
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

locals {
  found_zones = data.aws_availability_zones.available.names
  zones       = var.availability_zones == null ? slice(local.found_zones, 0, min(3, length(local.found_zones))) : var.availability_zones

  # The plan's types and sizes over what a person wrote; all else stays as written.
  node_pools     = { for name, pool in var.node_pools : name => merge(pool, try(var.planned_pools[name], {})) }
  homeless_pools = setsubtract(keys(var.planned_pools), keys(var.node_pools))
}

module "network" {
  source = "./modules/network"

  name                    = var.name
  vpc_cidr                = var.vpc_cidr
  availability_zones      = local.zones
  private_subnet_cidrs    = var.private_subnet_cidrs
  public_subnet_cidrs     = var.public_subnet_cidrs
  nat_gateways            = var.nat_gateways
  interface_endpoints     = var.interface_endpoints
  flow_log_retention_days = var.flow_log_retention_days
  tags                    = var.tags
}

module "cluster" {
  source = "./modules/cluster"

  name                         = var.name
  kubernetes_version           = var.kubernetes_version
  subnet_ids                   = module.network.private_subnet_ids
  vpc_cidr                     = var.vpc_cidr
  service_cidr                 = var.service_cidr
  endpoint_public_access_cidrs = var.endpoint_public_access_cidrs
  admin_principal_arns         = var.admin_principal_arns
  log_retention_days           = var.log_retention_days
  addons                       = var.addons
  nodes_ready                  = module.node_pools.ready
  tags                         = var.tags
}

module "node_pools" {
  source = "./modules/node_pools"

  name               = var.name
  cluster_name       = module.cluster.name
  kubernetes_version = var.kubernetes_version
  subnet_ids         = module.network.private_subnet_ids
  node_level_addons  = module.cluster.node_level_addons
  node_pools         = local.node_pools
  tags               = var.tags
}

module "artifacts" {
  source = "./modules/artifacts"

  name                = var.name
  bucket_name         = var.bucket_name
  release_prefix      = var.release_prefix
  keep_deleted_days   = var.keep_deleted_days
  tier_after_days     = var.tier_after_days
  access_log_bucket   = var.access_log_bucket
  untagged_image_days = var.untagged_image_days
  force_destroy       = var.force_destroy
  tags                = var.tags
}

module "identity" {
  source = "./modules/identity"

  name                    = var.name
  cluster_name            = module.cluster.name
  cluster_arn             = module.cluster.arn
  oidc_provider_arn       = module.cluster.oidc_provider_arn
  oidc_issuer             = module.cluster.oidc_issuer
  bucket_arn              = module.artifacts.bucket_arn
  release_prefix          = var.release_prefix
  kms_key_arn             = module.artifacts.kms_key_arn
  repository_arns         = module.artifacts.repository_arns
  credentials             = var.credentials
  namespace               = var.namespace
  service_account         = var.service_account
  deployer_principal_arns = var.deployer_principal_arns
  tags                    = var.tags
}

module "budget" {
  source = "./modules/budget"
  count  = var.budget == null ? 0 : 1

  name       = var.name
  limit_usd  = var.budget.limit_usd
  emails     = var.budget.emails
  thresholds = var.budget.thresholds
  cost_tag   = var.budget.cost_tag
}

module "canary" {
  source = "./modules/canary"
  count  = var.canary == null ? 0 : 1

  name      = var.name
  role      = var.canary.role
  alarm_arn = var.canary.alarm_arn
}
