from spaces_client.cli import main

main(prog_name="spaces")
