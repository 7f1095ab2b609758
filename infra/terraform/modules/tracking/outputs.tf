output "database_host" {
  description = "Host of the database, in the VPC."
  value       = aws_db_instance.this.address
}

output "database_secret_id" {
  description = "Name of the secret in Secrets Manager that holds the password."
  value       = aws_secretsmanager_secret.database.name
}
