"""What has nothing to do with records, images or networks: commands, files, processes."""
