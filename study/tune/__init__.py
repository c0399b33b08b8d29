"""All of Ray, and nothing else imports it."""
