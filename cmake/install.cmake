# What `cmake --install` puts where, and the Debian package (cpack in the build directory).
include(GNUInstallDirs)

# The manual page and the completion are made by the program itself: they cannot disagree with it.
set(manual ${CMAKE_CURRENT_BINARY_DIR}/troupe.1)
set(completion ${CMAKE_CURRENT_BINARY_DIR}/troupe.bash)
add_custom_command(OUTPUT ${manual} ${completion}
  COMMAND troupe man > ${manual}
  COMMAND troupe completion bash > ${completion}
  DEPENDS troupe VERBATIM)
add_custom_target(command_docs ALL DEPENDS ${manual} ${completion})

install(TARGETS troupe RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY configs models DESTINATION ${CMAKE_INSTALL_DATADIR}/troupe)
install(FILES ${manual} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${completion} DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
        RENAME troupe)
install(FILES README.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME troupe)
set(CPACK_PACKAGE_CONTACT "the Troupe project")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "mixture-of-experts models on CPUs, one process per device")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
include(CPack)
