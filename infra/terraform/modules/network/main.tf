# A VPC over two or more zones: nodes in private subnets, load balancers and NAT in public ones.
# Shard loads go through the S3 gateway endpoint and image pulls through ECR's, so neither pays NAT.

data "aws_region" "current" {}

locals {
  # Of the VPC's 64 sixty-fourths, zone i has eight for its private subnet and one for its public.
  private_cidrs = coalesce(var.private_subnet_cidrs, [for i, _ in var.availability_zones : cidrsubnet(var.vpc_cidr, 3, i)])
  public_cidrs  = coalesce(var.public_subnet_cidrs, [for i, _ in var.availability_zones : cidrsubnet(var.vpc_cidr, 6, 48 + i)])

  fits        = length(local.private_cidrs) == length(var.availability_zones) && length(local.public_cidrs) == length(var.availability_zones)
  private     = local.fits ? zipmap(var.availability_zones, local.private_cidrs) : {}
  public      = local.fits ? zipmap(var.availability_zones, local.public_cidrs) : {}
  nat_zones   = var.nat_gateways == "single" ? [var.availability_zones[0]] : var.availability_zones
  vpc_prefix  = split("/", var.vpc_cidr)[1]
  every_cidr  = concat(local.private_cidrs, local.public_cidrs)
  outside_vpc = [for cidr in local.every_cidr : cidr if tonumber(split("/", cidr)[1]) < tonumber(local.vpc_prefix) || cidrhost("${split("/", cidr)[0]}/${local.vpc_prefix}", 0) != cidrhost(var.vpc_cidr, 0)]
  cross_overlap = flatten([
    for a in local.private_cidrs : [
      for b in local.public_cidrs : "${a} and ${b}"
      if cidrhost("${split("/", a)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0) == cidrhost("${split("/", b)[0]}/${min(split("/", a)[1], split("/", b)[1])}", 0)
    ]
  ])
}

resource "aws_vpc" "this" {
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = merge(var.tags, { Name = var.name })

  lifecycle {
    precondition {
      condition     = local.fits
      error_message = "private_subnet_cidrs, public_subnet_cidrs: one network for each of the ${length(var.availability_zones)} availability_zones."
    }
    precondition {
      condition     = length(local.outside_vpc) == 0
      error_message = "private_subnet_cidrs, public_subnet_cidrs: outside vpc_cidr ${var.vpc_cidr}: ${join(", ", local.outside_vpc)}."
    }
    precondition {
      condition     = length(local.cross_overlap) == 0
      error_message = "private_subnet_cidrs and public_subnet_cidrs overlap: ${join(", ", local.cross_overlap)}."
    }
  }
}

# Nothing uses the default group; without rules, nothing that lands in it by mistake can talk.
resource "aws_default_security_group" "none" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-default-unused" })
}

resource "aws_subnet" "private" {
  for_each = local.private

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false
  tags                    = merge(var.tags, { Name = "${var.name}-private-${each.key}", "kubernetes.io/role/internal-elb" = "1" })
}

resource "aws_subnet" "public" {
  for_each = local.public

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false
  tags                    = merge(var.tags, { Name = "${var.name}-public-${each.key}", "kubernetes.io/role/elb" = "1" })
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = var.name })
}

resource "aws_eip" "nat" {
  #checkov:skip=CKV2_AWS_19:The addresses belong to NAT gateways, which the check does not follow through for_each.
  for_each = toset(local.nat_zones)

  domain = "vpc"
  tags   = merge(var.tags, { Name = "${var.name}-nat-${each.key}" })

  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  for_each = local.fits ? toset(local.nat_zones) : []

  allocation_id = aws_eip.nat[each.key].id
  subnet_id     = aws_subnet.public[each.key].id
  tags          = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-public" })
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "public" {
  for_each = aws_subnet.public

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table" "private" {
  for_each = local.private

  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-private-${each.key}" })
}

resource "aws_route" "nat" {
  for_each = local.private

  route_table_id         = aws_route_table.private[each.key].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[var.nat_gateways == "single" ? local.nat_zones[0] : each.key].id
}

resource "aws_route_table_association" "private" {
  for_each = aws_subnet.private

  subnet_id      = each.value.id
  route_table_id = aws_route_table.private[each.key].id
}
