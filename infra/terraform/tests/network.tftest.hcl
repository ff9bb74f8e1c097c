# The network, planned without an account.

mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
}

variables {
  name               = "recs"
  availability_zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

run "derives_a_subnet_pair_per_zone" {
  command = plan

  module {
    source = "./modules/network"
  }

  assert {
    condition     = [for zone in var.availability_zones : aws_subnet.private[zone].cidr_block] == ["10.42.0.0/19", "10.42.32.0/19", "10.42.64.0/19"]
    error_message = "one /19 per zone for nodes and pods"
  }

  assert {
    condition     = [for zone in var.availability_zones : aws_subnet.public[zone].cidr_block] == ["10.42.192.0/22", "10.42.196.0/22", "10.42.200.0/22"]
    error_message = "one /22 per zone for load balancers"
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.private : subnet.tags["kubernetes.io/role/internal-elb"] == "1"]) && alltrue([for subnet in aws_subnet.public : subnet.tags["kubernetes.io/role/elb"] == "1"])
    error_message = "load balancers find their subnets by these tags"
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.public : subnet.map_public_ip_on_launch == false])
    error_message = "nothing gets a public address by default"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 3
    error_message = "one NAT gateway serves all zones by default"
  }

  assert {
    condition     = aws_vpc_endpoint.s3.service_name == "com.amazonaws.eu-central-1.s3" && aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway"
    error_message = "shard loads do not pay NAT"
  }

  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr"])
    error_message = "image pulls do not pay NAT"
  }

  assert {
    condition     = aws_flow_log.this[0].traffic_type == "ALL" && aws_cloudwatch_log_group.flow[0].retention_in_days == 365
    error_message = "flow logs are kept a year by default"
  }
}

run "nat_in_each_zone" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    nat_gateways            = "per_zone"
    interface_endpoints     = []
    flow_log_retention_days = 0
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(aws_eip.nat) == 3
    error_message = "one NAT gateway per zone"
  }

  assert {
    condition     = length(aws_security_group.endpoints) == 0 && length(aws_flow_log.this) == 0
    error_message = "what is off is not made"
  }
}

run "own_subnets" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    vpc_cidr             = "10.0.0.0/20"
    availability_zones   = ["eu-central-1a", "eu-central-1b"]
    private_subnet_cidrs = ["10.0.0.0/22", "10.0.4.0/22"]
    public_subnet_cidrs  = ["10.0.8.0/26", "10.0.8.64/26"]
  }

  assert {
    condition     = aws_subnet.private["eu-central-1b"].cidr_block == "10.0.4.0/22" && aws_subnet.public["eu-central-1b"].cidr_block == "10.0.8.64/26"
    error_message = "given networks are taken in the order of the zones"
  }
}

run "refuses_one_zone" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones = ["eu-central-1a"]
  }

  expect_failures = [var.availability_zones]
}

run "refuses_a_zone_twice" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones = ["eu-central-1a", "eu-central-1a"]
  }

  expect_failures = [var.availability_zones]
}

run "refuses_overlapping_private_subnets" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones   = ["eu-central-1a", "eu-central-1b"]
    private_subnet_cidrs = ["10.42.0.0/18", "10.42.32.0/19"]
  }

  expect_failures = [var.private_subnet_cidrs]
}

run "refuses_overlapping_public_subnets" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones  = ["eu-central-1a", "eu-central-1b"]
    public_subnet_cidrs = ["10.42.192.0/22", "10.42.192.0/22"]
  }

  expect_failures = [var.public_subnet_cidrs]
}

run "refuses_private_over_public" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones   = ["eu-central-1a", "eu-central-1b"]
    private_subnet_cidrs = ["10.42.0.0/19", "10.42.32.0/19"]
    public_subnet_cidrs  = ["10.42.60.0/24", "10.42.192.0/24"]
  }

  expect_failures = [aws_vpc.this]
}

run "refuses_subnets_outside_the_vpc" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    availability_zones   = ["eu-central-1a", "eu-central-1b"]
    private_subnet_cidrs = ["10.43.0.0/19", "10.42.32.0/19"]
  }

  expect_failures = [aws_vpc.this]
}

run "refuses_fewer_subnets_than_zones" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    private_subnet_cidrs = ["10.42.0.0/19", "10.42.32.0/19"]
  }

  expect_failures = [aws_vpc.this]
}

run "refuses_a_tiny_vpc" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    vpc_cidr = "10.42.0.0/24"
  }

  expect_failures = [var.vpc_cidr]
}

run "refuses_host_bits" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    vpc_cidr = "10.42.0.1/16"
  }

  expect_failures = [var.vpc_cidr]
}
