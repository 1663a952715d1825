# libtorch for training (UF_TRAIN): headers and libraries of an installed torch Python package.
# Only its CPU part is linked; the CUDA part of the machine's own torch is opened at run time when a
# GPU is asked for, so one program runs with and without NVIDIA's libraries. find_package(Torch)
# would ask for the CUDA toolkit here.
if(UF_TRAIN)
  if(NOT UF_TORCH_DIR)
    # tools/setup.sh train puts one here when the system has none.
    if(EXISTS ${PROJECT_SOURCE_DIR}/build/torch/torch/lib/libtorch_cpu.so)
      set(UF_TORCH_FOUND_DIR ${PROJECT_SOURCE_DIR}/build/torch/torch)
    else()
      find_program(UF_PYTHON3 python3)
      if(UF_PYTHON3)
        execute_process(COMMAND ${UF_PYTHON3} -c
          "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
          OUTPUT_VARIABLE UF_TORCH_FOUND_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      endif()
    endif()
  else()
    set(UF_TORCH_FOUND_DIR ${UF_TORCH_DIR})
  endif()
  if(NOT EXISTS "${UF_TORCH_FOUND_DIR}/lib/libtorch_cpu.so"
     OR NOT EXISTS "${UF_TORCH_FOUND_DIR}/include/ATen/ATen.h")
    message(FATAL_ERROR "UF_TRAIN=ON, but there is no libtorch in '${UF_TORCH_FOUND_DIR}'; run "
            "tools/setup.sh train, or set UF_TORCH_DIR to the folder of a torch Python package "
            "(with include/ and lib/ in it)")
  endif()
  message(STATUS "libtorch: ${UF_TORCH_FOUND_DIR}")
  add_library(uf_torch INTERFACE)
  # Behind the system's headers, because libtorch carries others by the names of some of them (fmt).
  target_compile_options(uf_torch INTERFACE
    "SHELL:-idirafter ${UF_TORCH_FOUND_DIR}/include"
    "SHELL:-idirafter ${UF_TORCH_FOUND_DIR}/include/torch/csrc/api/include")
  target_link_libraries(uf_torch INTERFACE ${UF_TORCH_FOUND_DIR}/lib/libtorch_cpu.so
    ${UF_TORCH_FOUND_DIR}/lib/libc10.so ${CMAKE_DL_LIBS})
endif()
