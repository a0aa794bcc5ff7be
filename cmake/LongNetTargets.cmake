# ln_layer(NAME PUBLIC libs... PRIVATE libs... CUDA libs...): static library longnet_NAME from
# src/NAME; the libraries after CUDA are linked (privately) where LN_HAVE_CUDA is on.
# Sources are found by name; a suffix says how they are compiled:
#   *_avx2.cpp, *_avx512.cpp        one instruction set each, chosen at run time
#   *.cu, *_X.cpp / *_X_stub.cpp    with / without CUDA; X: cuda, cublaslt, nccl
#   *_cudnn.cpp / *_cudnn_stub.cpp  with / without cuDNN (LN_HAVE_CUDNN)
function(ln_layer name)
  cmake_parse_arguments(ARG "" "" "PUBLIC;PRIVATE;CUDA" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/${name}/*.cpp
                                              ${CMAKE_CURRENT_SOURCE_DIR}/src/${name}/*.cu)
  if(LN_HAVE_CUDA)
    list(FILTER sources EXCLUDE REGEX "_(cuda|cublaslt|nccl)_stub\\.cpp$")
  else()
    list(FILTER sources EXCLUDE REGEX "(\\.cu|_(cuda|cublaslt|nccl)\\.cpp)$")
    set(ARG_CUDA "")
  endif()
  if(LN_HAVE_CUDNN)
    list(FILTER sources EXCLUDE REGEX "_cudnn_stub\\.cpp$")
  else()
    list(FILTER sources EXCLUDE REGEX "_cudnn\\.cpp$")
  endif()
  if(NOT sources)
    file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/empty_${name}.cpp "")
    set(sources ${CMAKE_CURRENT_BINARY_DIR}/empty_${name}.cpp)
  endif()
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(FILTER sources EXCLUDE REGEX "_avx(2|512)\\.cpp$")
  endif()
  add_library(longnet_${name} STATIC ${sources})
  foreach(source IN LISTS sources)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512vl;-mavx512bw;-mavx512dq;-mavx2;-mfma;-mprefer-vector-width=512")
    endif()
  endforeach()
  target_include_directories(longnet_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<INSTALL_INTERFACE:include/longnet>)
  target_link_libraries(longnet_${name} PUBLIC ${ARG_PUBLIC}
                        PRIVATE ${ARG_PRIVATE} ${ARG_CUDA} $<BUILD_INTERFACE:ln_options>)
  target_compile_features(longnet_${name} PUBLIC cxx_std_20)
  set_target_properties(longnet_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

# ln_test(NAME LIBS libs... LABELS labels... [RANKS 1 2 4 8]): test program NAME_test from
# tests/NAME/*.cpp. Without RANKS every case is a CTest entry; with RANKS one mpirun per rank count
# runs all cases of the program.
function(ln_test name)
  cmake_parse_arguments(ARG "" "" "LIBS;LABELS;RANKS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${name}_test ${sources})
  target_link_libraries(${name}_test PRIVATE ${ARG_LIBS} ln_test_folders GTest::gtest GTest::gmock
                                             ln_options)
  target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  if(ARG_RANKS)
    foreach(ranks IN LISTS ARG_RANKS)
      add_test(NAME ${name}.ranks${ranks}
               COMMAND ${PROJECT_SOURCE_DIR}/scripts/mpirun_local.sh ${ranks} $<TARGET_FILE:${name}_test>)
      set_tests_properties(${name}.ranks${ranks} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900
                           RUN_SERIAL TRUE)
    endforeach()
  else()
    target_link_libraries(${name}_test PRIVATE GTest::gtest_main)
    gtest_discover_tests(${name}_test TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
                         PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600)
  endif()
endfunction()
