# Who may do what, by service account. Metaflow's pods reach the data bucket and nothing else of AWS; artifacts go to S3
# through the MLflow server, so that only its pods hold the key to them.

locals {
  namespace        = "fast-electra"
  mlflow_namespace = "mlflow"
}

data "aws_iam_policy_document" "data" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [module.storage.bucket_arns["data"]]
  }
  statement {
    sid       = "ReadAndWrite" # deleting makes a version non-current: it can be restored
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${module.storage.bucket_arns["data"]}/*"]
  }
}

data "aws_iam_policy_document" "artifacts" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [module.storage.bucket_arns["artifacts"]]
  }
  statement {
    sid       = "ReadAndWrite"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${module.storage.bucket_arns["artifacts"]}/*"]
  }
}

data "aws_iam_policy_document" "backup" {
  statement {
    sid       = "WriteOnly" # a stolen token of the backup can neither read nor delete a dump
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${module.storage.bucket_arns["backups"]}/*"]
  }
}

data "aws_iam_policy_document" "autoscaler" {
  statement {
    sid = "Look" # these actions know no resources
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]
  }
  statement {
    sid       = "NodeGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = [module.cluster.node_group_arn_pattern]
  }
  statement {
    sid       = "Scale"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${module.cluster.name}"
      values   = ["owned"] # EKS puts this tag on its node groups
    }
  }
}

locals {
  service_roles = {
    task = {
      subjects = ["${local.namespace}:fast-electra", "${local.namespace}:fast-electra-argo"]
      policy   = data.aws_iam_policy_document.data.json
    }
    mlflow = {
      subjects = ["${local.mlflow_namespace}:mlflow"]
      policy   = data.aws_iam_policy_document.artifacts.json
    }
    backup = {
      subjects = ["${local.mlflow_namespace}:mlflow-backup"]
      policy   = data.aws_iam_policy_document.backup.json
    }
    autoscaler = {
      subjects = ["kube-system:cluster-autoscaler"]
      policy   = data.aws_iam_policy_document.autoscaler.json
    }
  }
}

module "service_role" {
  source   = "./modules/service_role"
  for_each = local.service_roles

  name              = "${var.name}-${each.key}"
  oidc_provider_arn = module.cluster.oidc_provider_arn
  oidc_issuer       = module.cluster.oidc_issuer
  subjects          = each.value.subjects
  policy            = each.value.policy
}
