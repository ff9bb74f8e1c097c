# An access key to leave where only a thief looks. It has no rights; its use is an event.

resource "aws_iam_user" "canary" {
  #checkov:skip=CKV_AWS_273:It is nobody's: no one signs in as it, and it has no rights.
  name = "${var.name}-${var.role}"
  path = "/"
}

resource "aws_iam_access_key" "canary" {
  user = aws_iam_user.canary.name
}

# CloudTrail has to record management events in this region. Reads count as well: the first thing that
# a thief calls is sts:GetCallerIdentity, which EventBridge leaves out by default.
resource "aws_cloudwatch_event_rule" "used" {
  name        = "${var.name}-canary-used"
  description = "Somebody uses the access key of ${aws_iam_user.canary.name}, which nobody has a reason to."
  state       = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"

  event_pattern = jsonencode({
    detail = {
      userIdentity = {
        accessKeyId = [aws_iam_access_key.canary.id]
      }
    }
  })
}

resource "aws_cloudwatch_event_target" "alarm" {
  rule = aws_cloudwatch_event_rule.used.name
  arn  = var.alarm_arn
}
