# A role that the named Kubernetes service accounts, and nobody else, may take (IAM roles for service accounts).

variable "name" {
  description = "Name of the role."
  type        = string
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's identity provider in IAM."
  type        = string
}

variable "oidc_issuer" {
  description = "The cluster's issuer, without https://."
  type        = string
}

variable "subjects" {
  description = "Service accounts as NAMESPACE:NAME."
  type        = list(string)

  validation {
    condition     = length(var.subjects) > 0 && alltrue([for subject in var.subjects : can(regex("^[a-z0-9-]+:[a-z0-9-]+$", subject))])
    error_message = "subjects must be NAMESPACE:NAME, at least one, without wildcards."
  }
}

variable "policy" {
  description = "What the role may do: a policy document in JSON."
  type        = string
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:sub"
      values   = [for subject in var.subjects : "system:serviceaccount:${subject}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "this" {
  name               = var.name
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "this" {
  name   = var.name
  role   = aws_iam_role.this.id
  policy = var.policy
}

output "arn" {
  description = "ARN of the role, for the annotation eks.amazonaws.com/role-arn."
  value       = aws_iam_role.this.arn
}
