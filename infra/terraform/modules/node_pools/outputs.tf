output "pools" {
  description = "Each pool as erless reads it: instance types, sizes, node selector, tolerations."
  value = {
    for name, pool in var.node_pools : name => merge(local.placement[name], {
      instance_types = pool.instance_types
      capacity_type  = pool.spot ? "SPOT" : "ON_DEMAND"
      min_size       = pool.min_size
      max_size       = pool.max_size
    })
  }
}

output "placement" {
  description = "Where erless places each role: node selector and tolerations of the pool that serves it."
  value       = merge([for name, pool in var.node_pools : { for role in pool.roles : role => local.placement[name] }]...)
}

output "node_role_arn" {
  description = "The nodes' IAM role."
  value       = aws_iam_role.node.arn
}

output "ready" {
  description = "Known once every node group is active."
  value       = [for group in aws_eks_node_group.pool : group.id]
}
