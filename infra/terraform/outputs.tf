output "erless" {
  description = "All that `erless deploy --target knative --infra DIR` and `erless pack --infra DIR` read. A root module that calls this one passes it on as an output of the same name."
  value = {
    schema_version = 1
    region         = data.aws_region.current.name
    cluster = {
      name                       = module.cluster.name
      endpoint                   = module.cluster.endpoint
      certificate_authority_data = module.cluster.certificate_authority_data
      version                    = module.cluster.version
    }
    store_url    = module.artifacts.store_url
    registry_url = module.artifacts.registry_url
    repositories = module.artifacts.repositories
    identity = {
      method             = module.identity.method
      namespace          = module.identity.namespace
      service_account    = module.identity.service_account
      functions_role_arn = module.identity.functions_role_arn
      deployer_role_arn  = module.identity.deployer_role_arn
    }
    placement  = module.node_pools.placement
    node_pools = module.node_pools.pools
  }

  precondition {
    condition     = length(local.homeless_pools) == 0
    error_message = "planned_pools: no pool of that name in node_pools: ${join(", ", local.homeless_pools)}."
  }
}

output "cluster_name" {
  description = "Name of the EKS cluster."
  value       = module.cluster.name
}

output "region" {
  description = "AWS region."
  value       = data.aws_region.current.name
}

output "bucket" {
  description = "Bucket of the releases."
  value       = module.artifacts.bucket
}

output "store_url" {
  description = "The store, as `erless pack --store` takes it."
  value       = module.artifacts.store_url
}

output "registry_url" {
  description = "Registry host and name that all image repositories begin with."
  value       = module.artifacts.registry_url
}

output "node_labels" {
  description = "Node selector of each role that has a pool."
  value       = { for role, place in module.node_pools.placement : role => place.node_selector }
}

output "deployer_role_arn" {
  description = "Role for people and CI that deploy."
  value       = module.identity.deployer_role_arn
}

output "autoscaler_role_arn" {
  description = "Role of the cluster autoscaler."
  value       = module.identity.autoscaler_role_arn
}

output "kubeconfig_command" {
  description = "Command that adds the cluster to your kubeconfig."
  value       = "aws eks update-kubeconfig --region ${data.aws_region.current.name} --name ${module.cluster.name}"
}

output "canary_access_key_id" {
  description = "Id of the access key without rights; null without one."
  value       = one(module.canary[*].access_key_id)
}

output "canary_secret_access_key" {
  description = "Its secret: worth nothing but the alarm."
  value       = one(module.canary[*].secret_access_key)
  sensitive   = true
}
