output "buckets" {
  description = "Names of the buckets by purpose: data, artifacts, backups."
  value       = { for purpose, bucket in aws_s3_bucket.this : purpose => bucket.bucket }
}

output "bucket_arns" {
  description = "ARNs of the buckets by purpose, known before they exist."
  value       = local.arns
}

output "image_repositories" {
  description = "Addresses of the image repositories: steps, mlflow."
  value       = { for purpose, repository in aws_ecr_repository.this : purpose => repository.repository_url }
}
