from rkan_mm.cli import main

main()
