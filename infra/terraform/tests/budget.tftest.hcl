# The alarm, planned without an account.

mock_provider "aws" {}

variables {
  name      = "recs"
  limit_usd = 2500
  emails    = ["ml@example.com"]
}

run "tells_before_the_bill_does" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    cost_tag = { key = "project", value = "recs" }
  }

  assert {
    condition     = aws_budgets_budget.monthly.limit_amount == "2500.0" && aws_budgets_budget.monthly.time_unit == "MONTHLY"
    error_message = "dollars per month"
  }

  assert {
    condition     = toset([for note in aws_budgets_budget.monthly.notification : "${note.notification_type} ${note.threshold}"]) == toset(["ACTUAL 50", "ACTUAL 80", "ACTUAL 100", "FORECASTED 100"])
    error_message = "at half, at 80 %, at the limit, and when the forecast reaches it"
  }

  assert {
    condition     = one(aws_budgets_budget.monthly.cost_filter).values == tolist(["user:project$recs"])
    error_message = "counts what carries the tag"
  }
}

run "refuses_a_limit_of_nothing" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    limit_usd = 0
  }

  expect_failures = [var.limit_usd]
}

run "refuses_what_is_no_address" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    emails = ["ml"]
  }

  expect_failures = [var.emails]
}
