output "name" {
  description = "Name of the cluster, known before it exists."
  value       = var.name
}

output "security_group_id" {
  description = "Security group of the control plane and all nodes."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "oidc_provider_arn" {
  description = "ARN of the identity provider in IAM."
  value       = aws_iam_openid_connect_provider.this.arn
}

output "oidc_issuer" {
  description = "The issuer, without https://."
  value       = local.oidc_issuer
}

output "node_group_arn_pattern" {
  description = "Pattern of the node groups' ARNs."
  value       = "arn:${data.aws_partition.current.partition}:eks:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:nodegroup/${var.name}/*"
}
