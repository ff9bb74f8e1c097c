variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "limit_usd" {
  description = "Dollars per month at which the alarm is complete."
  type        = number

  validation {
    condition     = var.limit_usd > 0
    error_message = "limit_usd: more than 0."
  }
}

variable "emails" {
  description = "Who is told, up to ten addresses."
  type        = list(string)

  validation {
    condition     = length(var.emails) >= 1 && length(var.emails) <= 10 && alltrue([for email in var.emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", email))])
    error_message = "emails: one to ten e-mail addresses."
  }
}

variable "thresholds" {
  description = "Percentages of the limit at which actual spending is told; forecast spending is told at 100."
  type        = list(number)
  default     = [50, 80, 100]

  validation {
    condition     = length(var.thresholds) >= 1 && length(var.thresholds) <= 4 && alltrue([for threshold in var.thresholds : threshold > 0 && threshold <= 1000])
    error_message = "thresholds: one to four percentages above 0."
  }
}

variable "cost_tag" {
  description = "Count only what carries this cost allocation tag, as key and value; null counts the whole account."
  type        = object({ key = string, value = string })
  default     = null

  validation {
    condition     = var.cost_tag == null || try(length(var.cost_tag.key) > 0 && length(var.cost_tag.value) > 0, false)
    error_message = "cost_tag: key and value, both not empty."
  }
}
