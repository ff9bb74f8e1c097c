output "name" {
  description = "The cluster's name, known once its control plane is active."
  value       = aws_eks_cluster.this.name
}

output "arn" {
  description = "The cluster's ARN."
  value       = aws_eks_cluster.this.arn
}

output "version" {
  description = "The control plane's Kubernetes minor version."
  value       = aws_eks_cluster.this.version
}

output "endpoint" {
  description = "URL of the Kubernetes API."
  value       = aws_eks_cluster.this.endpoint
}

output "certificate_authority_data" {
  description = "The API's certificate authority, base64 of PEM."
  value       = aws_eks_cluster.this.certificate_authority[0].data
}

output "oidc_provider_arn" {
  description = "IAM's OpenID Connect provider for the cluster, which IRSA roles trust."
  value       = aws_iam_openid_connect_provider.cluster.arn
}

output "oidc_issuer" {
  description = "The issuer's host and path, without https://."
  value       = replace(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")
}

output "kms_key_arn" {
  description = "Key of the Kubernetes secrets and control-plane logs."
  value       = aws_kms_key.cluster.arn
}

output "node_level_addons" {
  description = "Add-ons that must run before nodes join; node pools wait for this value."
  value       = [for addon in aws_eks_addon.before_nodes : addon.addon_name]
}
