# The canary key, planned and applied without an account.

mock_provider "aws" {
  mock_resource "aws_iam_access_key" {
    defaults = { id = "AKIACANARY0000000000" }
  }
}

variables {
  name      = "recs"
  alarm_arn = "arn:aws:sns:eu-central-1:123456789012:alarms"
}

run "its_use_is_an_event" {
  command = apply

  module {
    source = "./modules/canary"
  }

  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.used.event_pattern).detail.userIdentity.accessKeyId == ["AKIACANARY0000000000"]
    error_message = "the rule looks for this key, whatever it calls"
  }

  assert {
    condition     = aws_cloudwatch_event_rule.used.state == "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"
    error_message = "reads count too: a thief begins with sts:GetCallerIdentity"
  }

  assert {
    condition     = aws_cloudwatch_event_target.alarm.arn == var.alarm_arn && aws_cloudwatch_event_target.alarm.rule == aws_cloudwatch_event_rule.used.name
    error_message = "the event goes to the alarm"
  }
}

run "refuses_what_is_no_alarm" {
  command = plan

  module {
    source = "./modules/canary"
  }

  variables {
    alarm_arn = "ml@example.com"
  }

  expect_failures = [var.alarm_arn]
}
