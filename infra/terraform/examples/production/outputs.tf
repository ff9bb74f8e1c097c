output "erless" {
  description = "What `erless deploy --target knative --infra DIR` reads."
  value       = module.erless.erless
}

output "store_url" {
  description = "The store, as `erless pack --store` takes it."
  value       = module.erless.store_url
}

output "registry_url" {
  description = "Registry host and name that all image repositories begin with."
  value       = module.erless.registry_url
}

output "node_labels" {
  description = "Node selector of each role that has a pool."
  value       = module.erless.node_labels
}

output "kubeconfig_command" {
  description = "Command that adds the cluster to your kubeconfig."
  value       = module.erless.kubeconfig_command
}
