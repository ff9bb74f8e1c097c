# The cluster autoscaler learns what a pool without nodes would look like from tags of its
# autoscaling group; tags of the node group do not reach that.

locals {
  hints = merge([
    for name, pool in var.node_pools : merge(
      {
        for key, value in local.labels[name] :
        "${name} label ${key}" => { pool = name, key = "k8s.io/cluster-autoscaler/node-template/label/${key}", value = value }
      },
      {
        for taint in local.taints[name] :
        "${name} taint ${taint.key}" => {
          pool  = name
          key   = "k8s.io/cluster-autoscaler/node-template/taint/${taint.key}"
          value = "${taint.value == null ? "" : taint.value}:${local.effects[taint.effect]}"
        }
      },
      {
        "${name} disk" = { pool = name, key = "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage", value = "${pool.disk_gib}Gi" }
      },
    )
  ]...)
}

resource "aws_autoscaling_group_tag" "hint" {
  for_each = local.hints

  autoscaling_group_name = aws_eks_node_group.pool[each.value.pool].resources[0].autoscaling_groups[0].name

  tag {
    key                 = each.value.key
    value               = each.value.value
    propagate_at_launch = false
  }
}
