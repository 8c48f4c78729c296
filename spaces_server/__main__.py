from spaces_server.cli import main

main(prog_name="spaces-server")
