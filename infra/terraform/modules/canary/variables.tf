variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "role" {
  description = "What the key seems to be for, as the user is called."
  type        = string
  default     = "release-uploader"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,39}$", var.role))
    error_message = "role: 2 to 40 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "alarm_arn" {
  description = "What gets the event: an SNS topic, SQS queue or Lambda function that EventBridge may send to."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:(sns|sqs|lambda):[a-z0-9-]+:[0-9]{12}:.+$", var.alarm_arn))
    error_message = "alarm_arn: the ARN of an SNS topic, SQS queue or Lambda function."
  }
}
