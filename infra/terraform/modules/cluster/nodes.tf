# Steady CPU nodes on demand; interruptible CPU and GPU nodes, and GPU nodes on demand, of which none run until a pod asks.

data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.key}"
}

resource "aws_launch_template" "node" {
  for_each = local.disk_gb

  name = "${var.name}-${each.key}-node"

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = each.value
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # Version 2 of the metadata service, one hop: pods cannot take the node's role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${each.key}-node" }
  }
}

locals {
  disk_gb = { cpu = var.node_disk_gb, gpu = var.gpu_node_disk_gb }

  gpu_taint  = { "nvidia.com/gpu" = "present" } # pods that ask for no GPU stay away
  spot_taint = { "fast-electra/spot" = "true" } # and those that could not bear an interruption

  # The pools that infra/profiles names. Those with min 0 are taken up from there by the autoscaler
  # (infra/kubernetes/overlays/aws) when a pod asks for them, and down again when none does.
  pools = {
    cpu      = { gpu = false, spot = false, min = 2, taints = {} }
    cpu-spot = { gpu = false, spot = true, min = 0, taints = local.spot_taint }
    gpu      = { gpu = true, spot = false, min = 0, taints = local.gpu_taint }
    gpu-spot = { gpu = true, spot = true, min = 0, taints = merge(local.gpu_taint, local.spot_taint) }
  }
}

resource "aws_eks_node_group" "this" {
  for_each = local.pools

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  instance_types  = each.value.gpu ? var.gpu_instance_types : var.cpu_instance_types
  capacity_type   = each.value.spot ? "SPOT" : "ON_DEMAND"
  ami_type        = each.value.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  labels          = { "fast-electra/pool" = each.key }

  # Of a group that is at zero the autoscaler knows cores, memory and GPUs by the instance type, but no disk; a pod that asks
  # for some, as those of the profiles do, would wait for ever. 0.88: less 10 % and 1 GiB, which the kubelet keeps.
  tags = {
    "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "${floor(0.88 * local.disk_gb[each.value.gpu ? "gpu" : "cpu"]) - 1}Gi"
  }

  scaling_config {
    min_size     = each.value.min
    desired_size = each.value.min
    max_size     = each.value.gpu ? var.gpu_max_nodes : var.cpu_max_nodes
  }

  update_config {
    max_unavailable = 1
  }

  dynamic "taint" {
    for_each = each.value.taints

    content {
      key    = taint.key
      value  = taint.value
      effect = "NO_SCHEDULE"
    }
  }

  launch_template {
    id      = aws_launch_template.node[each.value.gpu ? "gpu" : "cpu"].id
    version = aws_launch_template.node[each.value.gpu ? "gpu" : "cpu"].latest_version
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.network_plugin]
}
