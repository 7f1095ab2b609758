output "job_queues" {
  description = "Names of the job queues: cpu, gpu."
  value       = { for kind, queue in aws_batch_job_queue.this : kind => queue.name }
}

output "task_role_arn" {
  description = "ARN of the role that tasks in AWS Batch have."
  value       = aws_iam_role.task.arn
}

output "step_functions_role_arn" {
  description = "ARN of the role that state machines have."
  value       = aws_iam_role.step_functions.arn
}

output "events_role_arn" {
  description = "ARN of the role that the schedule starts state machines with."
  value       = aws_iam_role.events.arn
}

output "state_table" {
  description = "Name of the table for widths of foreach."
  value       = aws_dynamodb_table.state.name
}
