# cmake --install: the program, the static libraries with their headers, and a package for
# find_package(LongNet), which gives longnet::longnet.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(LN_LIBRARIES longnet_core longnet_kernels longnet_dist longnet_data longnet_model longnet_train)
install(TARGETS longnet ${LN_LIBRARIES} EXPORT LongNetTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET longnet_program)
  install(TARGETS longnet_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/ DESTINATION include/longnet
        FILES_MATCHING PATTERN "*.h" PATTERN "cli" EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/longnet/configs)
install(EXPORT LongNetTargets NAMESPACE longnet::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/LongNet)
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/LongNetConfig.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/LongNetConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/LongNet)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/LongNetConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/LongNetConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/LongNetConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/LongNetMpi.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindNCCL.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindCUDNN.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/LongNet)
