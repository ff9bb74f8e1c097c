# Who may do what, planned without an account.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  name              = "recs"
  cluster_name      = "recs"
  cluster_arn       = "arn:aws:eks:eu-central-1:123456789012:cluster/recs"
  oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/0"
  oidc_issuer       = "oidc.eks.eu-central-1.amazonaws.com/id/0"
  bucket_arn        = "arn:aws:s3:::recs-releases"
  release_prefix    = "releases"
  kms_key_arn       = "arn:aws:kms:eu-central-1:123456789012:key/0"
  repository_arns   = ["arn:aws:ecr:eu-central-1:123456789012:repository/recs/sparse"]
}

run "functions_read_the_prefix_only" {
  command = plan

  module {
    source = "./modules/identity"
  }

  assert {
    condition     = toset(flatten([for statement in jsondecode(aws_iam_role_policy.functions.policy).Statement : statement.Action])) == toset(["s3:GetObject", "s3:ListBucket", "kms:Decrypt"])
    error_message = "functions read and nothing else"
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.functions.policy).Statement[0].Resource == "arn:aws:s3:::recs-releases/releases/*"
    error_message = "under the releases' prefix"
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.functions.policy).Statement[1].Condition == { StringLike = { "s3:prefix" = "releases/*" } }
    error_message = "and list no other"
  }

  assert {
    condition     = jsondecode(aws_iam_role.functions.assume_role_policy).Statement[0].Condition.ArnEquals["aws:SourceArn"] == var.cluster_arn
    error_message = "only pods of this cluster"
  }

  assert {
    condition     = aws_eks_pod_identity_association.functions[0].namespace == "erless" && aws_eks_pod_identity_association.functions[0].service_account == "erless-functions"
    error_message = "only the functions' service account"
  }
}

run "deployer_writes_the_prefix_only" {
  command = plan

  module {
    source = "./modules/identity"
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.deployer.policy).Statement[0].Resource == "arn:aws:s3:::recs-releases/releases/*"
    error_message = "under the releases' prefix"
  }

  assert {
    condition     = alltrue([for statement in jsondecode(aws_iam_role_policy.deployer.policy).Statement : statement.Resource != "*" || statement.Action == "ecr:GetAuthorizationToken"])
    error_message = "every statement names its resources, where the action knows any"
  }

  assert {
    condition     = aws_eks_access_entry.deployer.kubernetes_groups == toset(["erless:deployers"])
    error_message = "in the cluster, a group that cluster init gives the namespace to"
  }
}

run "irsa" {
  command = plan

  module {
    source = "./modules/identity"
  }

  variables {
    credentials = "irsa"
    namespace   = "recs"
  }

  assert {
    condition     = jsondecode(aws_iam_role.functions.assume_role_policy).Statement[0].Condition.StringEquals["oidc.eks.eu-central-1.amazonaws.com/id/0:sub"] == "system:serviceaccount:recs:erless-functions"
    error_message = "only the functions' service account"
  }

  assert {
    condition     = length(aws_eks_pod_identity_association.functions) == 0
    error_message = "no association"
  }
}

run "refuses_unknown_credentials" {
  command = plan

  module {
    source = "./modules/identity"
  }

  variables {
    credentials = "access-key"
  }

  expect_failures = [var.credentials]
}
