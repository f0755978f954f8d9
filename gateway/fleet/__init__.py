"""What `gateway.client.Fleet` is made of: a connection that comes back, commands that wait, and what devices say."""
