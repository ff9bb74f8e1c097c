output "functions_role_arn" {
  description = "Role of the functions: reads releases."
  value       = aws_iam_role.functions.arn
}

output "deployer_role_arn" {
  description = "Role of people and CI who deploy: writes releases, pushes images."
  value       = aws_iam_role.deployer.arn
}

output "autoscaler_role_arn" {
  description = "Role of the cluster autoscaler (service account kube-system/cluster-autoscaler)."
  value       = aws_iam_role.autoscaler.arn
}

output "method" {
  description = "How functions get their role: pod-identity or irsa."
  value       = var.credentials
}

output "namespace" {
  description = "Kubernetes namespace of the functions."
  value       = var.namespace
}

output "service_account" {
  description = "Kubernetes service account of the functions."
  value       = var.service_account
}
