output "access_key_id" {
  description = "Id of the key."
  value       = aws_iam_access_key.canary.id
}

output "secret_access_key" {
  description = "Its secret: worth nothing but the alarm."
  value       = aws_iam_access_key.canary.secret
  sensitive   = true
}

output "rule" {
  description = "Name of the EventBridge rule."
  value       = aws_cloudwatch_event_rule.used.name
}
