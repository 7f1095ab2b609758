# AWS Batch: two queues of interruptible instances, none of which run while their queue is empty.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  here      = "${data.aws_region.current.name}:${local.account}" # of ARNs

  state_table = "${var.name}-step-functions"

  queues = {
    cpu = { types = var.cpu_instance_types, max_vcpus = 4 * var.cpu_max_nodes, disk_gb = var.node_disk_gb, image_type = "ECS_AL2023" }
    gpu = { types = var.gpu_instance_types, max_vcpus = 32 * var.gpu_max_nodes, disk_gb = var.gpu_node_disk_gb, image_type = "ECS_AL2023_NVIDIA" }
  }
}

data "aws_iam_policy_document" "instance_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "instance" {
  name               = "${var.name}-batch-instance"
  assume_role_policy = data.aws_iam_policy_document.instance_trust.json
}

resource "aws_iam_role_policy_attachment" "instance" {
  role       = aws_iam_role.instance.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "instance" {
  name = "${var.name}-batch-instance"
  role = aws_iam_role.instance.name
}

resource "aws_security_group" "instance" {
  name        = "${var.name}-batch"
  description = "Batch instances: nothing in, everything out"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.instance.id
  description       = "To S3, DynamoDB, ECR, MLflow"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_launch_template" "instance" {
  for_each = local.queues

  name = "${var.name}-batch-${each.key}"

  # Jobs are told when their instance is to be taken away, and have half a minute for a checkpoint. Batch takes this form.
  user_data = base64encode(<<-EOT
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="part"

    --part
    Content-Type: text/x-shellscript; charset="us-ascii"

    #!/bin/sh
    echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >> /etc/ecs/ecs.config
    --part--
    EOT
  )

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = each.value.disk_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
}

resource "aws_batch_compute_environment" "this" {
  for_each = local.queues

  compute_environment_name_prefix = "${var.name}-${each.key}-" # a change makes a new one before the old one goes
  type                            = "MANAGED"

  compute_resources {
    type                = "SPOT"
    allocation_strategy = "SPOT_PRICE_CAPACITY_OPTIMIZED"
    instance_type       = each.value.types
    instance_role       = aws_iam_instance_profile.instance.arn
    min_vcpus           = 0
    max_vcpus           = each.value.max_vcpus
    subnets             = var.subnet_ids
    security_group_ids  = [aws_security_group.instance.id]

    ec2_configuration {
      image_type = each.value.image_type
    }
    launch_template {
      launch_template_id = aws_launch_template.instance[each.key].id
      version            = "$Latest"
    }
  }

  lifecycle {
    create_before_destroy = true
  }

  depends_on = [aws_iam_role_policy_attachment.instance]
}

resource "aws_batch_job_queue" "this" {
  for_each = local.queues

  name     = "${var.name}-${each.key}"
  state    = "ENABLED"
  priority = 1

  compute_environment_order {
    order               = 1
    compute_environment = aws_batch_compute_environment.this[each.key].arn
  }
}
