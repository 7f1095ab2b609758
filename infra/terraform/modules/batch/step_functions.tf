# What Metaflow needs to run flows as state machines: a table in which tasks leave how wide a foreach is, and three roles.

resource "aws_dynamodb_table" "state" {
  name         = local.state_table
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "pathspec" # the name that Metaflow uses

  attribute {
    name = "pathspec"
    type = "S"
  }
  ttl {
    attribute_name = "ttl"
    enabled        = true
  }
  server_side_encryption {
    enabled = true
  }
}

data "aws_iam_policy_document" "trust" {
  for_each = { task = "ecs-tasks", step_functions = "states", events = "events" }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.value}.amazonaws.com"]
    }
    condition { # the service acting for another account may not use the role
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

# The containers of tasks.

data "aws_iam_policy_document" "task" {
  source_policy_documents = [var.data_policy]

  statement {
    sid       = "ForeachWidths"
    actions   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"]
    resources = ["arn:${local.partition}:dynamodb:${local.here}:table/${local.state_table}"]
  }
}

resource "aws_iam_role" "task" {
  name               = "${var.name}-batch-task"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
}

resource "aws_iam_role_policy" "task" {
  name   = "data-and-widths"
  role   = aws_iam_role.task.id
  policy = data.aws_iam_policy_document.task.json
}

# The state machines.

data "aws_iam_policy_document" "step_functions" {
  statement {
    sid       = "Submit"
    actions   = ["batch:SubmitJob"]
    resources = ["arn:${local.partition}:batch:${local.here}:job-queue/${var.name}-*", "arn:${local.partition}:batch:${local.here}:job-definition/metaflow_*"]
  }
  statement {
    sid       = "Stop"
    actions   = ["batch:TerminateJob"]
    resources = ["arn:${local.partition}:batch:${local.here}:job/*"]
  }
  statement {
    sid       = "Look" # knows no resources
    actions   = ["batch:DescribeJobs"]
    resources = ["*"]
  }
  statement {
    sid       = "HearOfTheEnd" # the rule by which Step Functions learns that a job has ended
    actions   = ["events:PutTargets", "events:PutRule", "events:DescribeRule"]
    resources = ["arn:${local.partition}:events:${local.here}:rule/StepFunctionsGetEventsForBatchJobsRule"]
  }
  statement {
    sid       = "ForeachWidths"
    actions   = ["dynamodb:GetItem"]
    resources = ["arn:${local.partition}:dynamodb:${local.here}:table/${local.state_table}"]
  }
}

resource "aws_iam_role" "step_functions" {
  name               = "${var.name}-step-functions"
  assume_role_policy = data.aws_iam_policy_document.trust["step_functions"].json
}

resource "aws_iam_role_policy" "step_functions" {
  name   = "batch"
  role   = aws_iam_role.step_functions.id
  policy = data.aws_iam_policy_document.step_functions.json
}

# The schedule.

data "aws_iam_policy_document" "events" {
  statement {
    sid       = "Start"
    actions   = ["states:StartExecution"]
    resources = ["arn:${local.partition}:states:${local.here}:stateMachine:${var.name}*"] # NAME_Flow; a --name that begins so is kept
  }
}

resource "aws_iam_role" "events" {
  name               = "${var.name}-schedule"
  assume_role_policy = data.aws_iam_policy_document.trust["events"].json
}

resource "aws_iam_role_policy" "events" {
  name   = "start"
  role   = aws_iam_role.events.id
  policy = data.aws_iam_policy_document.events.json
}
