# The whole, planned without an account.

mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }
}

variables {
  name = "recs"
}

run "defaults" {
  command = plan

  assert {
    condition     = output.node_labels == { for role, pool in { gateway = "hot", dense = "hot", hot = "hot", warm = "hot", cold = "cold", frozen = "cold" } : role => { "erless.dev/pool" = pool } }
    error_message = "every role has a pool by default"
  }

  assert {
    condition     = output.region == "eu-central-1" && output.kubeconfig_command == "aws eks update-kubeconfig --region eu-central-1 --name recs"
    error_message = "the provider's region"
  }

  assert {
    condition     = length(module.budget) == 0
    error_message = "no alarm unless asked for"
  }
}

run "the_plan_sizes_the_pools" {
  command = plan

  variables {
    planned_pools = { cold = { instance_types = ["r7i.4xlarge"], min_size = 3, max_size = 9 } }
  }

  assert {
    condition     = module.node_pools.pools["cold"].instance_types == tolist(["r7i.4xlarge"]) && module.node_pools.pools["cold"].min_size == 3 && module.node_pools.pools["cold"].max_size == 9
    error_message = "types and sizes come from the plan"
  }

  assert {
    condition     = module.node_pools.pools["cold"].node_selector == { "erless.dev/pool" = "cold" } && module.node_pools.pools["hot"].instance_types == tolist(["c7i.2xlarge"])
    error_message = "all else stays as written"
  }
}

run "an_alarm" {
  command = plan

  variables {
    budget = { limit_usd = 100, emails = ["ml@example.com"] }
  }

  assert {
    condition     = length(module.budget) == 1
    error_message = "an alarm"
  }
}

run "refuses_planned_pools_that_do_not_exist" {
  command = plan

  variables {
    planned_pools = { icy = { instance_types = ["r7i.4xlarge"], min_size = 0, max_size = 1 } }
  }

  expect_failures = [output.erless]
}

run "refuses_one_zone" {
  command = plan

  variables {
    availability_zones = ["eu-central-1a"]
  }

  expect_failures = [var.availability_zones]
}

run "refuses_min_above_max" {
  command = plan

  variables {
    node_pools = { all = { instance_types = ["m7i.large"], min_size = 3, max_size = 2 } }
  }

  expect_failures = [var.node_pools]
}

run "refuses_a_bad_name" {
  command = plan

  variables {
    name = "Recs!"
  }

  expect_failures = [var.name]
}
